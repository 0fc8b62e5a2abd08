//! Encrypted streams.
//!
//! A peer that ends its stream without saying so in TLS (close_notify, RFC 8446 §6.1) has ended it
//! in order, as for HAProxy and nginx: too many programs just close. Whoever could forge that end
//! could as well cut the connection; protocols that must know carry their lengths.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use rustls::{client::UnbufferedClientConnection, server::UnbufferedServerConnection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{channel::Channel, connector::Unheard};

/// What there is with a client, from its first message on.
pub(super) type ServerChannel = Channel<TcpStream, UnbufferedServerConnection>;
/// What there is with a backend.
pub(super) type ClientChannel<S> = Channel<S, UnbufferedClientConnection>;

/// An encrypted connection with a client.
#[derive(Debug)]
pub struct ServerStream(Box<ServerChannel>);

/// An encrypted connection with a backend.
#[derive(Debug)]
pub struct ClientStream<S> {
    channel: Box<ClientChannel<S>>,
    /// Until the backend has said a word, where anybody is to be told of a bad one.
    unheard: Option<Box<Unheard>>,
}

impl ServerStream {
    pub(super) const fn new(channel: Box<ServerChannel>) -> Self {
        Self(channel)
    }

    /// The protocol that both sides agreed on (RFC 7301), when they spoke of it.
    #[must_use]
    pub fn alpn(&self) -> Option<&[u8]> {
        self.0.state().alpn_protocol()
    }

    /// The client's own certificate (DER), verified, when it was asked for and has one.
    #[must_use]
    pub fn peer_certificate(&self) -> Option<&[u8]> {
        let chain = self.0.state().peer_certificates()?;
        chain.first().map(AsRef::as_ref)
    }

    /// The connection that carries it.
    #[must_use]
    pub fn get_ref(&self) -> &TcpStream {
        self.0.io()
    }
}

impl<S> ClientStream<S> {
    pub(super) const fn new(channel: Box<ClientChannel<S>>) -> Self {
        Self {
            channel,
            unheard: None,
        }
    }

    /// Notices when the backend's first word is that it refuses our certificate.
    pub(super) fn listen_with(&mut self, unheard: Unheard) {
        self.unheard = Some(Box::new(unheard));
    }

    /// The connection that carries it.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        self.channel.io()
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut *self.channel).poll_read(cx, buffer);
        if let (Some(_), Poll::Ready(first)) = (&self.unheard, &read) {
            let unheard = self.unheard.take();
            if let (Some(unheard), Err(error)) = (unheard, first) {
                unheard.heard(error);
            }
        }
        read
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.channel).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.channel).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.channel.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.channel).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.channel).poll_shutdown(cx)
    }
}
