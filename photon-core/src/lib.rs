//! photon-core
