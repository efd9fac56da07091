"""What makes the method fast, distributed, unkillable or pretty: to be skipped at first."""

import re


def first_line(error: Exception) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


OFFLINE = "HF_HUB_OFFLINE=1 takes what was downloaded before, or give a local file or folder"
NOT_THERE = "there is no such thing on the Hub (a private one: `hf auth login`)"


def _chain(error: BaseException | None):
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def unreachable(error: BaseException) -> str:
    """What an error of the Hub's client says of the network in the end, "" if it is not of that."""
    *_, last = errors = list(_chain(error))
    kinds = " ".join(type(each).__name__ for each in errors)
    return first_line(last) if re.search("Connect|Timeout|Proxy|Offline|LocalEntry", kinds) else ""


def status_of(error: BaseException) -> int | None:
    """The HTTP status with which the Hub answered, if it did."""
    answers = [getattr(each, "response", None) for each in _chain(error)]
    return next((answer.status_code for answer in answers if answer is not None), None)


def reason_of_the_hub(error: Exception) -> str:
    """What an error of the Hub's client says, in one line; without a network also what to do."""
    from huggingface_hub import constants  # here: it reads the environment when it is imported

    cause, status = unreachable(error), status_of(error)
    if status in (401, 403, 404):
        return NOT_THERE
    if status:
        return f"the Hub answered {status}: try again, or {OFFLINE}"
    if cause and constants.HF_HUB_OFFLINE:
        return (
            "HF_HUB_OFFLINE is set, and it was not downloaded before: unset it, or give a local "
            "file or folder"
        )
    if cause:
        return f"the Hub cannot be reached ({cause}): {OFFLINE}"
    return first_line(error)
