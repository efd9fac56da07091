"""What makes the method fast, distributed, unkillable or pretty: to be skipped at first."""

import re


def first_line(error: Exception) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def unreachable(error: BaseException | None) -> str:
    """What an error of the Hub's client says of the network in the end, "" if it is not of that."""
    network, last = False, None
    while error is not None:
        last, kind = error, type(error).__name__
        network |= bool(re.search("Connect|Timeout|Proxy|Offline|LocalEntry", kind))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return first_line(last) if network else ""


def reason_of_the_hub(error: Exception) -> str:
    """What an error of the Hub's client says, in one line; without a network also what to do."""
    from huggingface_hub import constants  # here: it reads the environment when it is imported

    cause = unreachable(error)
    if cause and constants.HF_HUB_OFFLINE:
        return (
            "HF_HUB_OFFLINE is set, and it was not downloaded before: unset it, or give a local "
            "file or folder"
        )
    if cause:
        return (
            f"the Hub cannot be reached ({cause}): HF_HUB_OFFLINE=1 takes what was downloaded "
            "before, or give a local file or folder"
        )
    return first_line(error)
