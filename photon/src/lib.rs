//! photon

#[cfg(feature = "hub")]
pub mod hub;
