//! The data plane's connections, as the supervisor sees them.

use std::{sync::Arc, time::Duration};

use crate::{
    cluster::Load,
    proxy::{Cut, DataPlane},
    supervisor::{Asked, Guests},
};

/// Those that are relayed.
#[derive(Debug)]
pub(super) struct Relayed(pub(super) Arc<DataPlane>);

impl Guests for Relayed {
    fn ask_to_leave(&self, generation: &Arc<Load>, spread: Duration) -> Asked {
        let (plane, which) = (Arc::clone(&self.0), Cut::Generation(Arc::clone(generation)));
        Box::pin(async move { plane.ask_to_leave(&which, spread).await })
    }

    fn cut(&self, generation: &Arc<Load>) -> Asked {
        let (plane, which) = (Arc::clone(&self.0), Cut::Generation(Arc::clone(generation)));
        Box::pin(async move { plane.cut(which).await })
    }
}
