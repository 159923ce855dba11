"""How S3 and its three clients (pyarrow, boto3, Delta) say that they refuse the credentials."""

import re

_CODES = (
    "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "InvalidClientTokenId", "UnrecognizedClientException", "RequestExpired", "MissingAuthenticationToken",
)  # fmt: skip
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError")
# How pyarrow and Delta say it, each in words that it puts around the code: names of clips stand in messages too, and
# one may well be called "403 Forbidden".
_SNAKE = "|".join(re.sub(r"(?<!^)(?=[A-Z])", "_", code.removesuffix("Exception")).upper() for code in _CODES)
_REFUSED = re.compile(
    rf"AWS Error ({_SNAKE}) during"
    r"|\(HTTP status 403\)"
    rf"|<Code>({'|'.join(_CODES)})</Code>"
    r"|status(?: code)?\W*(?:\x1b\[\d+m\W*)*403 Forbidden"
)


def is_refusal(error: BaseException) -> bool:
    """Whether an error of pyarrow, boto3 or Delta says that the credentials were refused."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # boto3
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status == 403 or answer.get("Error", {}).get("Code") in _CODES
    return (
        isinstance(error, PermissionError)
        or type(error).__name__ in _NO_CREDENTIALS
        or _REFUSED.search(str(error)) is not None
    )
