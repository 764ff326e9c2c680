//! Work of seconds or minutes in a thread of its own, while the thread that asked looks for signals.
use std::{
    sync::mpsc::{RecvTimeoutError, channel},
    time::Duration,
};

use pyo3::prelude::*;

/// How long a thread waits before it looks for signals.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// Does `work`, which says how far it is, and has `told` hear of it. After Ctrl-C nobody waits for it any more.
pub(crate) fn run<M: Send + 'static, T: Send + 'static>(
    py: Python<'_>,
    name: &str,
    work: impl FnOnce(&mut dyn FnMut(M)) -> T + Send + 'static,
    mut told: impl FnMut(M) -> PyResult<()>,
) -> PyResult<T> {
    let (send, mut receive) = channel();
    let thread = std::thread::Builder::new().name(name.into());
    let thread = thread.spawn(move || work(&mut |message| drop(send.send(message))))?;
    loop {
        let receive = &mut receive;
        match py.detach(move || receive.recv_timeout(TICK)) {
            Ok(message) => told(message)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        py.check_signals()?;
    }
    match py.detach(|| thread.join()) {
        Ok(done) => Ok(done),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
