//! demo-model
