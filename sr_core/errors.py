"""Errors that a user can act on: each names the file, patch or parameter, what was found and what was expected."""


class SubpixelError(Exception):
    """Base of all errors that are reported without a traceback."""


class ConfigError(SubpixelError):
    """The configuration is wrong: an unknown key, a value out of range, dates swapped."""


class AreaError(SubpixelError):
    """The area cannot be gridded: outside UTM, too large, or not covered by the source."""


class SourceError(SubpixelError):
    """A source could not be read: missing, empty, truncated, or not what it should be."""


class DataError(SubpixelError):
    """Data were read but cannot be used: all nodata, only cloudy dates, NaN, no samples."""


class ArtifactError(SubpixelError):
    """An artifact of an earlier stage is missing, unfinished or of another version."""


class StorageError(SubpixelError):
    """Local folder or S3 prefix cannot be read or written."""


class ClusterError(SubpixelError):
    """A Kubernetes cluster cannot be reached, refuses what was asked, or what it runs has failed."""


class ServiceError(SubpixelError):
    """A model server cannot be reached, refuses a request, or answers something else than it should."""
