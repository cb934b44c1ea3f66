//! `cargo +nightly fuzz run query`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fermata_imds::fuzz::query(data));
