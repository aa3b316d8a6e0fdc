"""Figures are pictures of their numbers."""

from promptstore.tracking.figures import confusion_matrix, curves

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_confusion_matrix_is_a_picture_that_changes_with_its_counts() -> None:
    one = confusion_matrix(["yes", "no"], [[5, 1], [0, 9]], "sst2")
    other = confusion_matrix(["yes", "no"], [[1, 5], [9, 0]], "sst2")
    assert one.startswith(PNG)
    assert one != other


def test_a_confusion_matrix_takes_a_label_that_never_occurs_and_many_labels() -> None:
    many = [str(number) for number in range(77)]
    assert confusion_matrix(many, [[0] * 77 for _ in many], "banking").startswith(PNG)


def test_curves_take_short_long_and_no_lines() -> None:
    assert curves({"loss": [(step, 1 / (step + 1)) for step in range(100)], "lr": [(0, 0.3)]}, "t", "y").startswith(PNG)
    assert curves({}, "t", "y").startswith(PNG)
