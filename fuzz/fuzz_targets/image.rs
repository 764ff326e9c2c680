//! See [`photon_models::hostile::image`].
#![no_main]

libfuzzer_sys::fuzz_target!(
    // A decoder may panic, which `decode` makes an error; the fuzzer's own hook would abort before.
    init: std::panic::set_hook(Box::new(|_| {})),
    |bytes: &[u8]| photon_models::hostile::image(bytes)
);
