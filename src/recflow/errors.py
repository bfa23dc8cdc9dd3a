"""Every error that recflow raises on purpose.

    RecflowError
    ├── SettingsError        a setting is unknown or out of range
    ├── MissingInput         a step's input isn't there: an earlier step hasn't run
    ├── LeaseHeld            another run of the same step is at work
    ├── FeedError            a feed file can't be read as what it should be
    │   └── FeedLate         the day's file isn't there yet: worth another try
    ├── BatchRejected        a batch rule stopped the day; the lake is as before
    ├── FeatureError         a feature expression or its store is at odds with its schema
    ├── TrainingError        there is too little, or nothing, to learn from
    ├── RegistryError        a version or an alias isn't there
    │   └── BundleInvalid    a bundle is incomplete, altered or fails its probe
    └── PublishError         a version couldn't be published; the champion stays

The message is one paragraph for the person who has to act: what was looked at, what was expected, what was
found, what to do next. The command line prints it and ends with `exit_code`.
"""


class RecflowError(Exception):
    """A failure that a person can act on."""

    exit_code = 1


class SettingsError(RecflowError):
    """A setting is unknown or out of range."""

    exit_code = 2


class MissingInput(RecflowError):
    """A step's input isn't there: an earlier step hasn't run for that day or version."""


class LeaseHeld(RecflowError):
    """Another run of the same step is at work on the same storage."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class FeedError(RecflowError):
    """A feed file can't be read as what it should be."""


class FeedLate(FeedError):
    """The day's file isn't there yet and no later one is: it may still come."""

    exit_code = 75


class BatchRejected(RecflowError):
    """A batch rule stopped the day; nothing was published."""


class FeatureError(RecflowError):
    """A feature expression or the feature store is at odds with its schema."""


class TrainingError(RecflowError):
    """There is too little, or nothing, to learn from."""


class RegistryError(RecflowError):
    """A version or an alias isn't in the registry."""


class BundleInvalid(RegistryError):
    """A bundle is incomplete, was altered, or fails its recorded probe."""


class PublishError(RecflowError):
    """A version couldn't be published; the champion is what it was."""
