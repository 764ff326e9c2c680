//! photon-cpu
