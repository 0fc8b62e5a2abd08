//! One end of TLS as rustls knows it, without the bytes.

use rustls::{
    CommonState,
    client::{ClientConnectionData, UnbufferedClientConnection},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::UnbufferedStatus,
};

/// Keys, and what they are used for next. All bytes are whose who asks.
pub(super) trait Session {
    /// What rustls knows besides.
    type Data;

    /// Takes records from the front of `incoming`, as far as one thing that is to be done next.
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// What both sides have agreed on.
    fn state(&self) -> &CommonState;
}

macro_rules! session {
    ($connection:ty, $data:ty) => {
        impl Session for $connection {
            type Data = $data;

            fn process<'c, 'i>(
                &'c mut self,
                incoming: &'i mut [u8],
            ) -> UnbufferedStatus<'c, 'i, Self::Data> {
                self.process_tls_records(incoming)
            }

            fn state(&self) -> &CommonState {
                self
            }
        }
    };
}

session!(UnbufferedServerConnection, ServerConnectionData);
session!(UnbufferedClientConnection, ClientConnectionData);
