//! `cargo +nightly fuzz run body`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fermata_imds::fuzz::body(data));
