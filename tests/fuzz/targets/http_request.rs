//! Requests: what is passed on means the same to whoever reads it, and bodies are the same however they arrive.

#![no_main]

use homescar::proxy::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzzing::request(bytes));
