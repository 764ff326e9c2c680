//! What is safe to call of Metal.
