//! `[admin]`: where a running homescar is asked and told what to do.

use std::net::SocketAddr;

use super::Context;
use crate::config::{
    Admin, AdminTcp, address,
    file::{Item, Section},
    keys,
};

/// The longest path that `sun_path` takes, without its terminator.
const LONGEST_PATH: usize = 107;

impl Context<'_> {
    pub(super) fn admin(&self, root: &Section<'_>) -> Admin {
        let default = Admin::at(self.facts.socket.clone());
        let section = root.get("admin");
        let Some(section) = section.and_then(|item| item.section(&keys::ADMIN)) else {
            return default;
        };
        let socket = section.get("socket").and_then(|item| {
            let text = item.text()?;
            let path = self.folder.join(text);
            let length = path.as_os_str().len();
            if text.is_empty() || text.ends_with('/') {
                item.fault("must be the path of a socket, as in \"/run/homescar.sock\"");
            } else if length > LONGEST_PATH {
                item.fault(format!(
                    "is a path of {length} bytes, and that of a Unix socket has at most \
                     {LONGEST_PATH}; write a shorter one"
                ));
            }
            Some(path)
        });
        let listen = section.get("listen");
        let token_file = section.get("token_file");
        match (&listen, &token_file) {
            (Some(listen), None) if !section.meant("token_file") => listen.fault(
                "needs `token_file`, a file with the secret that each request must show: \
                 `openssl rand -hex 32 > FILE`",
            ),
            (None, Some(token_file)) if !section.meant("listen") => {
                token_file.fault("is for `listen`; write an address as in \"127.0.0.1:9901\"");
            }
            _ => {}
        }
        let listen = listen.and_then(|item| one_address(&item));
        let token_file = token_file.and_then(|item| Some(self.folder.join(item.text()?)));
        Admin {
            socket: socket.unwrap_or(default.socket),
            tcp: listen
                .zip(token_file)
                .map(|(listen, token_file)| AdminTcp { listen, token_file }),
        }
    }
}

fn one_address(item: &Item<'_>) -> Option<SocketAddr> {
    item.parsed(|text| address::bind(text).map(|bind| bind.addr))
}
