//! From one image of the program to another, in the same process.

use std::{
    convert::Infallible,
    ffi::{CString, OsStr, OsString},
    fs::File,
    io::{self, Seek as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
};

use nix::{
    fcntl::{OFlag, open},
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, raise},
        stat::Mode,
    },
    unistd::execve,
};

use super::{Program, state::State};
use crate::handover::Number;

/// The first argument of an image that takes over; the number of the state's descriptor follows.
pub(super) const RESUME: &str = "__resume";
/// The same of an image that is gone back to; the number, and why, follow.
pub(super) const REVIVE: &str = "__revive";

/// A state as a file that is nowhere but in memory.
pub(super) fn in_memory(state: &State) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("homescar", MFdFlags::MFD_CLOEXEC)?);
    let mut text = io::BufWriter::new(&mut file);
    serde_json::to_writer(&mut text, state)?;
    text.flush()?;
    drop(text);
    file.rewind()?;
    Ok(file.into())
}

/// The file of the present image, also when another one has its name by now.
pub(super) fn this_image() -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    Ok(open("/proc/self/exe", flags, Mode::empty())?)
}

/// Executes a program with the state of this number; gives why that failed. A reload that was asked
/// for meanwhile waits for it as a signal: those are blocked, and stay so.
pub(super) fn execute(program: &Program, state: Number, reload: bool) -> String {
    if reload {
        let _pending = raise(Signal::SIGHUP);
    }
    let path = program.path.as_os_str();
    let mut arguments: Vec<OsString> = vec![
        path.to_owned(),
        RESUME.into(),
        state.get().to_string().into(),
    ];
    arguments.extend(program.arguments.iter().cloned());
    let executed = strings(arguments).and_then(|arguments| {
        let path = CString::new(path.as_bytes())?;
        Ok(execve(&path, &arguments, &environment()?)?)
    });
    match executed {
        Ok(never) => match never {},
        Err(error) => format!("{} cannot be executed: {error}", program.path.display()),
    }
}

/// The execution of the image that this one was to follow, whose descriptor is open and passes.
#[derive(Debug)]
pub(super) struct Revival {
    pub(super) path: CString,
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
}

impl Revival {
    /// `why` is what it is told of this one.
    pub(super) fn new(
        image: Number,
        name: &OsStr,
        state: Number,
        why: &str,
        arguments: &[OsString],
    ) -> io::Result<Self> {
        let mut all: Vec<OsString> = vec![
            name.to_owned(),
            REVIVE.into(),
            state.get().to_string().into(),
            why.into(),
        ];
        all.extend(arguments.iter().cloned());
        Ok(Self {
            path: CString::new(format!("/proc/self/fd/{}", image.get()))?,
            arguments: strings(all)?,
            environment: environment()?,
        })
    }
}

/// Executes it.
pub(super) fn revive(revival: &Revival) -> io::Result<Infallible> {
    let Revival {
        path,
        arguments,
        environment,
    } = revival;
    Ok(execve(path, arguments, environment)?)
}

fn strings(texts: Vec<OsString>) -> io::Result<Vec<CString>> {
    let texts = texts.into_iter();
    let texts = texts.map(|text| CString::new(text.into_vec()).map_err(io::Error::from));
    texts.collect()
}

fn environment() -> io::Result<Vec<CString>> {
    let variables = std::env::vars_os().map(|(name, value)| {
        let mut variable = name;
        variable.push("=");
        variable.push(value);
        variable
    });
    strings(variables.collect())
}
