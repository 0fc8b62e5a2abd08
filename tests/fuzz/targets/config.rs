//! Configuration files: no text makes the reader panic, every fault has a place in the text, and
//! what was understood can be printed and understood again.

#![no_main]

use std::num::NonZeroUsize;

use homescar::config::{Config, Facts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let facts = Facts {
        cores: NonZeroUsize::MIN,
        max_descriptors: 10_000,
        euid: 1000,
        folder: "/".into(),
        path: "/usr/bin:/bin".into(),
        web_concurrency: None,
        socket: "/run/homescar.sock".into(),
        has_user: |_| false,
    };
    match Config::parse(text, "f.toml", &facts) {
        Ok(config) => {
            let printed = config.to_toml();
            let again = Config::parse(&printed, "printed.toml", &facts);
            assert_eq!(again.as_ref(), Ok(&config), "{printed}");
        }
        Err(faults) => {
            let lines = text.split('\n').count();
            assert_ne!(faults.iter().len(), 0);
            for position in faults.iter().filter_map(|fault| fault.position) {
                assert!((1..=lines).contains(&position.line), "{faults}");
                assert!(position.column > 0, "{faults}");
            }
        }
    }
});
