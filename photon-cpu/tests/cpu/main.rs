//! What the backend promises to everyone, checked from outside.
mod conformance;
mod tape;
