//! stub
#![allow(missing_docs)]
use std::net::SocketAddr;
#[derive(Debug)]
pub struct Header {
    pub source: Option<SocketAddr>,
    pub destination: Option<SocketAddr>,
}
#[derive(Debug)]
pub enum Parse {
    Incomplete,
    Complete { header: Header, len: usize },
}
#[derive(Debug)]
pub struct ProxyError;
impl ProxyError {
    pub fn as_label(&self) -> &'static str {
        "x"
    }
}
pub fn parse(_: &[u8]) -> Result<Parse, ProxyError> {
    Ok(Parse::Incomplete)
}
pub fn write_v1(_: &mut Vec<u8>, _: SocketAddr, _: SocketAddr) {}
pub fn write_v2(_: &mut Vec<u8>, _: SocketAddr, _: SocketAddr) {}
