//! What can go wrong between a caller and the device.
use photon_models::{LoadError, image::ImageError, prompt::Rejected};

/// Why no model could be made ready.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The model's files.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device.
    #[error(transparent)]
    Device(#[from] photon_core::Error),
    /// A model that nobody knows or that is not here.
    #[error("{0}")]
    NoModel(String),
    /// A configuration that cannot cut pictures.
    #[error("config.json: {0}")]
    Crops(ImageError),
    /// A device this build does not have.
    #[error("{0}")]
    NoDevice(String),
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The request makes no sense; others are not affected.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The picture cannot be used; others are not affected.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] photon_core::Error),
    /// The model gave no number: its weights are damaged, or a 16-bit type overflowed.
    #[error("the model's output is not a number; its weights are damaged or --dtype is too narrow")]
    NotANumber,
}

/// Why a picture could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a picture Photon can use.
    #[error(transparent)]
    Image(#[from] ImageError),
}
