//! Host memory with a device copy in flight.
//!
//! The buffer is moved in and comes out only after its event, so no one can read it too early, and
//! dropping a [`Pending`] waits, so the memory cannot be freed under the copy.
use crate::{Device, Result};

/// A read-back under way.
#[derive(Debug)]
#[must_use]
pub struct Pending<D: Device> {
    device: D,
    inner: Option<(D::HostBuffer, D::Event)>,
}

impl<D: Device> Pending<D> {
    /// For backends: `event` fires after the copy into `host`.
    pub fn new(device: D, host: D::HostBuffer, event: D::Event) -> Self {
        Pending { device, inner: Some((host, event)) }
    }

    /// Blocks until the bytes are there.
    pub fn wait(mut self) -> Result<D::HostBuffer> {
        let (host, event) = self.inner.take().expect("taken only here and in drop");
        self.device.wait(&event).map(|()| host)
    }
}

impl<D: Device> Drop for Pending<D> {
    fn drop(&mut self) {
        if let Some((_host, event)) = &self.inner {
            // An error here will come up again at the next wait; what matters is that the copy ended.
            let _ = self.device.wait(event);
        }
    }
}
