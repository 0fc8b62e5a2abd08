//! Frames of WebSockets: they are where they are, however the bytes arrive.

#![no_main]

use homescar::proxy::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzzing::frames(bytes));
