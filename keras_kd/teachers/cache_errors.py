"""What can be wrong with a teacher cache."""


class CacheError(ValueError):
    """A cache, or what it is to be used with, is not as it has to be."""


class CacheMismatchError(CacheError):
    """The cache was made with another teacher, other data, or another augmentation."""


class CorruptShardError(CacheError):
    """Shards are missing, truncated or altered; `shards` holds their numbers."""

    def __init__(self, message: str, shards: tuple[int, ...] = ()):
        super().__init__(message)
        self.shards = shards


class CacheLockedError(RuntimeError):
    """Another process is building or repairing the same cache."""


class CacheDiskFullError(OSError):
    """The disk is too full; the message says how much is needed."""
