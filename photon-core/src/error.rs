//! What can go wrong on a device that the caller could not have foreseen.

/// A device failure. Shape and type mistakes are bugs and panic instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device has too little free memory.
    #[error(
        "out of {device} memory: {requested_bytes} bytes requested for {purpose}, {free_bytes} bytes free"
    )]
    OutOfMemory {
        /// The device's name.
        device: String,
        /// What the memory was for.
        purpose: String,
        /// Bytes asked for.
        requested_bytes: u64,
        /// Bytes free at that time.
        free_bytes: u64,
    },
    /// This backend cannot hold weights in this format.
    #[error("{device} has no kernel for {format} weights")]
    UnsupportedFormat {
        /// The device's name.
        device: String,
        /// The format asked for.
        format: String,
    },
    /// The device could not be opened.
    #[error("{device} is not available: {why}")]
    Unavailable {
        /// The device's name.
        device: String,
        /// Why not, and what to do.
        why: String,
    },
    /// The device stopped answering or refused work; nothing on it can be trusted any more.
    #[error("{device} was lost while {doing}: {why}")]
    DeviceLost {
        /// The device's name.
        device: String,
        /// What was being done.
        doing: String,
        /// What the driver said.
        why: String,
    },
}

/// A result with [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;
