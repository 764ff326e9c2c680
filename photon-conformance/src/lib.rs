//! photon-conformance
