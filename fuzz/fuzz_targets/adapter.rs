//! See [`photon_models::hostile::adapter`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| photon_models::hostile::adapter(bytes));
