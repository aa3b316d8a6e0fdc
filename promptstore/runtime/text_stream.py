"""Token ids to text while they arrive: whole characters only, and nothing that may become a stop text."""

from typing import Any


class TextStream:
    """Turns the token ids of one answer into text, piece by piece; the pieces joined are the decoded whole.

    Spaces in front are dropped: the one between template and answer belongs to the answer's first token
    (`TaskEncoder` says why), but not to the answer. Byte-level vocabularies split characters between tokens, and
    decoding depends on the neighbour to the left, so a piece is the difference of two decodings that start at the
    last piece's edge.
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        self._context_start = 0
        self._read_until = 0
        self._held = ""
        self._has_begun = False
        self.is_stopped = False

    def push(self, token_id: int) -> str:
        """The text that is now certain; sets `is_stopped` when a stop text came up."""
        self._ids.append(token_id)
        return self._release(self._new_text(is_last=False), is_last=False)

    def finish(self) -> str:
        """What was held back, once no more tokens come."""
        return "" if self.is_stopped else self._release(self._new_text(is_last=True), is_last=True)

    def _new_text(self, *, is_last: bool) -> str:
        before = self._decode(self._ids[self._context_start : self._read_until])
        after = self._decode(self._ids[self._context_start :])
        if not is_last and after.endswith("\ufffd"):
            return ""
        self._context_start = self._read_until
        self._read_until = len(self._ids)
        return after[len(before) :]

    def _release(self, text: str, *, is_last: bool) -> str:
        self._held += text if self._has_begun else text.lstrip(" ")
        self._has_begun = self._has_begun or bool(self._held)
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.is_stopped = True
            released, self._held = self._held[: min(found)], ""
            return released
        keep = 0 if is_last else self._possible_stop_chars()
        cut = len(self._held) - keep
        released, self._held = self._held[:cut], self._held[cut:]
        return released

    def _possible_stop_chars(self) -> int:
        """Length of the longest end of the held text that a stop text starts with."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)
