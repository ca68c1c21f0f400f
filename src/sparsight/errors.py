"""Every error that a user of sparsight can meet. Each says what was asked, what is true, and what to do.

SparsightError            the root: catch this to catch them all; the command line prints it as one line
├── BadInput              a value that cannot be used: empty prompt, NaN strength, unknown option
│   ├── NoHookPoint       a module path that this model does not have
│   ├── NoFeature         a feature index outside this SAE
│   ├── NoChatTemplate    messages for a model whose tokenizer has no chat template
│   └── TooLong           more tokens than the model's context
├── BadFile               a file that is missing, truncated, corrupt, unsafe or of another format
├── Mismatch              parts that do not belong together: an SAE or an edit made for something else
├── DiskFull              more to write than the disk has room for
├── Diverged              a training whose loss is no number any more
├── NotReached            a hook point that nothing flowed through: nothing was read or steered there
├── NoAnswer              a language model elsewhere that cannot be reached, or that refuses
├── OverBudget            a question that could cost more than is left of the budget
├── Busy                  more waits at a server than it takes in: try again after a while
├── Stopped               a server that ended before the answer did
├── NotSteered            an engine on which an edit does not act: it must not serve
└── Missing               something to install: an extra of sparsight, a compiler
"""


class SparsightError(Exception):
    """The root of all errors that sparsight raises on purpose."""


class BadInput(SparsightError, ValueError):
    """A value that cannot be used."""


class NoHookPoint(BadInput):
    """A module path that this model does not have."""


class NoFeature(BadInput, IndexError):
    """A feature index outside this SAE."""


class NoChatTemplate(BadInput):
    """Messages for a model whose tokenizer has no chat template."""


class TooLong(BadInput):
    """More tokens than the model's context holds."""


class BadFile(SparsightError):
    """A file that is missing, truncated, corrupt, unsafe or of another format."""


class Mismatch(SparsightError):
    """Parts that do not belong together: an SAE or an edit that was made for something else."""


class DiskFull(SparsightError, OSError):
    """More to write than the disk has room for: said before it starts or, at the latest, before anything is damaged."""


class Diverged(SparsightError):
    """A training whose loss is no number any more. Its last good checkpoint is there."""


class NotReached(SparsightError):
    """A hook point that nothing flowed through, so that nothing was read or steered there."""


class NoAnswer(SparsightError):
    """A language model elsewhere that cannot be reached, or that refuses. What it answered before is kept."""


class OverBudget(SparsightError):
    """A question that could cost more than is left of the budget, and was not sent. What was answered is kept."""


class Busy(SparsightError):
    """More waits at a server than it takes in. retry_after: seconds after which to try again."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Stopped(SparsightError):
    """A server that ended before the answer did."""


class NotSteered(SparsightError):
    """An engine on which an edit does not act: it must not serve."""


class Missing(SparsightError, ImportError):
    """Something to install: an extra of sparsight, a compiler."""
