//! Responses of backends: the same.

#![no_main]

use homescar::proxy::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzzing::response(bytes));
