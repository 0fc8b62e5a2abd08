//! One line of the channel: what it means, and what is answered. JSON in and out, no sockets.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Node's side of the protocol puts this first into what is not the application's own.
const INTERNAL: &[u8] = br#"{"cmd":"NODE_"#;
/// What is looked at at all, of the application's own messages: a `'ready'` is short.
const SHORT: usize = 256;

/// "I have received the descriptor."
pub(super) const RECEIVED: &str = r#"{"cmd":"NODE_HANDLE_ACK"}"#;
/// A descriptor that has not come with it. Node answers, "it is missing", as soon as its event loop
/// runs, and the application sees neither.
pub(super) const PING: &str = r#"{"cmd":"NODE_HANDLE"}"#;
/// "Close your servers, and end when your connections have."
pub(super) const DISCONNECT: &str = r#"{"cmd":"NODE_CLUSTER","act":"disconnect"}"#;
/// What the application is told before it is ended; PM2's word.
pub(super) const SHUTDOWN: &str = r#""shutdown""#;

/// What a worker says on its channel.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Said {
    /// Its side of the protocol is there.
    Online,
    /// A server of it wants a socket.
    Query(Query),
    /// A server of it listens: the query that it asked, and the port that it sees.
    Listening(Query),
    /// A server of it has closed.
    Close { key: String },
    /// `worker.disconnect()`: it is about to end, and waits for the answer to `seq`.
    Leaving { seq: u64 },
    /// The descriptor has arrived.
    Received,
    /// The message has arrived without its descriptor.
    Missed,
    /// It has sent a descriptor, which we do not want, and waits to hear of it.
    Handle,
    /// `process.send('ready')`.
    Ready,
    /// Nothing for us: the application's own.
    Other,
    /// Not what Node says.
    Nonsense,
}

/// A server that wants to listen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Query {
    /// What the answer refers to.
    pub seq: u64,
    /// An address, `null` for all, or the path of a Unix socket.
    pub address: Option<String>,
    /// -1 of a Unix socket.
    pub port: Option<i64>,
    /// 4, 6, -1 (a Unix socket), `"udp4"` or `"udp6"`.
    #[serde(rename = "addressType")]
    pub kind: Value,
    /// `listen({ fd })`.
    pub fd: Option<i64>,
    /// 1 is `IPV6_V6ONLY`.
    pub flags: Option<i64>,
    /// Of several servers on one address.
    pub index: u64,
    /// Of a TLS server: what makes its session tickets.
    pub data: Value,
}

impl Query {
    /// Its name in answers, as Node's own primary makes it.
    pub(super) fn key(&self) -> String {
        let or_null = |number: Option<i64>| number.map_or_else(|| "null".into(), |n| n.to_string());
        format!(
            "{}:{}:{}:{}:{}",
            self.address.as_deref().unwrap_or("null"),
            or_null(self.port),
            self.kind
                .as_str()
                .map_or_else(|| self.kind.to_string(), str::to_owned),
            or_null(self.fd),
            self.index
        )
    }
}

/// What a line means.
pub(super) fn parse(line: &[u8]) -> Said {
    let line = line.trim_ascii();
    if !line.starts_with(INTERNAL) {
        return match line {
            _ if line.len() > SHORT => Said::Other,
            _ => own(line),
        };
    }
    let Ok(message) = serde_json::from_slice::<Value>(line) else {
        return Said::Nonsense;
    };
    let seq = || message["seq"].as_u64();
    match (message["cmd"].as_str(), message["act"].as_str()) {
        (Some("NODE_HANDLE_ACK"), _) => Said::Received,
        (Some("NODE_HANDLE_NACK"), _) => Said::Missed,
        (Some("NODE_HANDLE"), _) => Said::Handle,
        (Some("NODE_CLUSTER"), Some("online")) => Said::Online,
        (Some("NODE_CLUSTER"), Some("queryServer")) => match (seq(), query(&message)) {
            (Some(_), Some(query)) => Said::Query(query),
            _ => Said::Nonsense,
        },
        (Some("NODE_CLUSTER"), Some("listening")) => {
            query(&message).map_or(Said::Nonsense, Said::Listening)
        }
        (Some("NODE_CLUSTER"), Some("close")) => match message["key"].as_str() {
            Some(key) => Said::Close {
                key: key.to_owned(),
            },
            None => Said::Nonsense,
        },
        (Some("NODE_CLUSTER"), Some("exitedAfterDisconnect" | "suicide")) => {
            seq().map_or(Said::Nonsense, |seq| Said::Leaving { seq })
        }
        // Later versions may say more, as long as they do not ask.
        _ => Said::Other,
    }
}

fn query(message: &Value) -> Option<Query> {
    Query::deserialize(message).ok()
}

/// A message of the application itself.
fn own(line: &[u8]) -> Said {
    match serde_json::from_slice::<Value>(line) {
        Ok(Value::String(text)) if text == "ready" => Said::Ready,
        Ok(message) if message["type"] == "ready" => Said::Ready,
        Ok(_) => Said::Other,
        Err(_) => Said::Nonsense,
    }
}

/// The descriptor that comes with this is the listening socket that the query asked for.
pub(super) fn granted(query: &Query) -> String {
    json!({
        "cmd": "NODE_HANDLE",
        "type": "net.Native",
        "msg": {
            "cmd": "NODE_CLUSTER",
            "ack": query.seq,
            "key": query.key(),
            "errno": 0,
            "data": query.data,
        },
    })
    .to_string()
}

/// There is no socket for the query; `errno` as in C, positive.
pub(super) fn refused(query: &Query, errno: i32) -> String {
    json!({
        "cmd": "NODE_CLUSTER",
        "ack": query.seq,
        "key": query.key(),
        "errno": -errno,
        "data": query.data,
    })
    .to_string()
}

/// Heard.
pub(super) fn acknowledged(seq: u64) -> String {
    json!({ "cmd": "NODE_CLUSTER", "ack": seq }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Node 20 says it.
    const QUERY: &str = r#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":null,"port":18099,"addressType":4,"backlog":0,"seq":1}"#;

    #[test]
    fn what_node_says() {
        let query = Query {
            seq: 1,
            port: Some(18099),
            kind: json!(4),
            ..Query::default()
        };
        assert_eq!(parse(QUERY.as_bytes()), Said::Query(query.clone()));
        assert_eq!(query.key(), "null:18099:4:null:0");
        let listening = QUERY.replace("queryServer", "listening");
        assert_eq!(parse(listening.as_bytes()), Said::Listening(query));
        let says = |line: &str| parse(line.as_bytes());
        let online = r#"{"cmd":"NODE_CLUSTER","act":"online","seq":0}"#;
        assert_eq!(says(online), Said::Online);
        let leaving = r#"{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":7}"#;
        assert_eq!(says(leaving), Said::Leaving { seq: 7 });
        let close = r#"{"cmd":"NODE_CLUSTER","act":"close","key":"k","seq":8}"#;
        assert_eq!(says(close), Said::Close { key: "k".into() });
        assert_eq!(says(RECEIVED), Said::Received);
        assert_eq!(says(r#"{"cmd":"NODE_HANDLE_NACK"}"#), Said::Missed);
        let handle = r#"{"cmd":"NODE_HANDLE","type":"net.Socket","msg":"hello"}"#;
        assert_eq!(says(handle), Said::Handle);
        let udp = QUERY.replace("\"addressType\":4", "\"addressType\":\"udp4\"");
        let Said::Query(udp) = says(&udp) else {
            panic!("a query");
        };
        assert_eq!(udp.key(), "null:18099:udp4:null:0");
    }

    #[test]
    fn what_the_application_says() {
        let says = |line: &str| parse(line.as_bytes());
        assert_eq!(says("\"ready\""), Said::Ready);
        assert_eq!(says(r#"{"type":"ready"}"#), Said::Ready);
        for other in [
            "\"Ready\"",
            "7",
            "null",
            "{}",
            "[\"ready\"]",
            "\"NODE_CLUSTER\"",
        ] {
            assert_eq!(says(other), Said::Other, "{other}");
        }
        let long = format!("\"{}\"", "x".repeat(SHORT));
        assert_eq!(says(&long), Said::Other);
        let later = r#"{"cmd":"NODE_CLUSTER","act":"weather","seq":9}"#;
        assert_eq!(says(later), Said::Other);
    }

    #[test]
    fn what_nobody_says() {
        let says = |line: &str| parse(line.as_bytes());
        for nonsense in ["", "hello", "\u{0}\u{1}", r#"{"cmd":"NODE_CLUSTER","#] {
            assert_eq!(says(nonsense), Said::Nonsense, "{nonsense:?}");
        }
        let unanswerable = QUERY.replace(",\"seq\":1", "");
        assert_eq!(says(&unanswerable), Said::Nonsense);
        let text = QUERY.replace("18099", "\"http\"");
        assert_eq!(says(&text), Said::Nonsense);
    }

    #[test]
    fn what_is_answered() {
        let query = Query {
            seq: 3,
            port: Some(80),
            kind: json!(6),
            address: Some("::1".into()),
            data: json!({ "ticketKeys": "00" }),
            ..Query::default()
        };
        let answer: Value = serde_json::from_str(&granted(&query)).unwrap();
        assert_eq!(answer["msg"]["ack"], 3);
        assert_eq!(answer["msg"]["key"], "::1:80:6:null:0");
        assert_eq!(
            answer["msg"]["data"], query.data,
            "a TLS server insists on it"
        );
        let answer: Value = serde_json::from_str(&refused(&query, libc::EADDRINUSE)).unwrap();
        assert_eq!((&answer["errno"], &answer["ack"]), (&json!(-98), &json!(3)));
        assert_eq!(acknowledged(4), r#"{"ack":4,"cmd":"NODE_CLUSTER"}"#);
    }
}
