"""What an error of the S3 client means, and what to do about it."""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
    TokenRetrievalError,
)

CLOCK_TOLERANCE = timedelta(minutes=5)
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, TokenRetrievalError)
_NOT_SENT = (EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError, ParamValidationError, *_NO_CREDENTIALS)
_BAD_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired"}


def status_of(error: Exception) -> int | None:
    """The HTTP status that the server answered; `None` if it did not answer."""
    if not isinstance(error, ClientError):
        return None
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) or None


def surely_did_not_happen(error: Exception) -> bool:
    """Whether a write that ended in `error` cannot have taken effect: it was never sent, or refused by a 3xx or 4xx."""
    status = status_of(error)
    if status is None:
        return isinstance(error, _NOT_SENT)
    return 300 <= status < 500 and status != 408


def explain(error: Exception, *, bucket: str, where: str, timeout_s: float) -> str:
    """What went wrong and the next step, for people."""
    match error:
        case ClientError():
            return _explain_answer(error, bucket, where)
        case _ if isinstance(error, _NO_CREDENTIALS):
            return f"no usable credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        case ReadTimeoutError():
            return f"{where} did not answer within {timeout_s:g} s (setting PROMPTSTORE_S3_TIMEOUT_S); repeat later"
        case EndpointConnectionError() | ConnectTimeoutError() | ProxyConnectionError():
            return f"{error}; is the server running, and is PROMPTSTORE_S3_ENDPOINT right (now: {where})?"
        case SSLError():
            return f"{error}; check the certificate (AWS_CA_BUNDLE names a file of trusted ones)"
        case _:
            return f"{where}: {error}; repeat later"


def _explain_answer(error: ClientError, bucket: str, where: str) -> str:
    details = error.response["Error"]
    code = str(details.get("Code", ""))
    status = status_of(error)
    said = f"{where} answered {status} {code} ({details.get('Message', 'no message')})"
    if code == "NoSuchBucket":
        return f"bucket {bucket!r} does not exist at {where}; create it, or correct the store's URL"
    if code == "RequestTimeTooSkewed" or (status == 403 and _clock_skew(error)):
        return f"{said}; this machine's clock is off{_by(_clock_skew(error))}: correct it (NTP), then repeat"
    if code in _BAD_KEYS:
        return f"{said}; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
    if status == 403:
        return (
            f"{said}; allow s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket on {bucket!r} "
            "(without s3:ListBucket, S3 answers 403 for an object that does not exist)"
        )
    if status in {301, 307, 400} and "Region" in str(details):
        return f"{said}; set PROMPTSTORE_S3_REGION to the bucket's region"
    if status in {429, 503}:
        return f"{said}; it asks for fewer requests: repeat later"
    return f"{said}; repeat later"


def _clock_skew(error: ClientError) -> timedelta | None:
    """How far this machine's clock is ahead of the server's; `None` if within what S3 accepts or unknown."""
    told = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if not told:
        return None
    try:
        skew = datetime.now(UTC) - parsedate_to_datetime(told)
    except (TypeError, ValueError):
        return None
    return skew if abs(skew) > CLOCK_TOLERANCE else None


def _by(skew: timedelta | None) -> str:
    if skew is None:
        return ""
    return f" by {abs(skew).total_seconds() / 60:.0f} minutes ({'ahead' if skew > timedelta(0) else 'behind'})"
