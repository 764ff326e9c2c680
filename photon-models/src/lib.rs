//! photon-models
