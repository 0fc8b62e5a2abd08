//! `homescar explain`: the way from a client's address to its slot.

use form_urlencoded::Serializer;

use super::{
    Exit, socket,
    status::{right, table, trimmed},
};
use crate::admin::view::Explanation;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The client's address; a port behind it means nothing
    client: String,
    /// The cluster [default: the only one]
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// The text of the client's affinity cookie
    #[arg(long, value_name = "TOKEN")]
    cookie: Option<String>,
    /// The value of the header or parameter that the cluster goes by
    #[arg(long, value_name = "TEXT")]
    value: Option<String>,
    #[command(flatten)]
    socket: socket::Arguments,
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    let mut query = Serializer::new(String::new());
    query.append_pair("client", &arguments.client);
    let others = [
        ("cluster", &arguments.cluster),
        ("cookie", &arguments.cookie),
        ("value", &arguments.value),
    ];
    for (name, text) in others {
        if let Some(text) = text {
            query.append_pair(name, text);
        }
    }
    let path = format!("/explain?{}", query.finish());
    arguments.socket.ask::<Explanation>(&path, text)
}

fn text(explanation: &Explanation) -> String {
    let Explanation {
        client,
        cluster,
        snapshot: _,
        affinity,
        by: _,
        steps,
        key,
        candidates,
        outcome: _,
        slot: _,
        backend: _,
        verdict,
    } = explanation;
    let mut page = format!("{client} {verdict}\n\ncluster {cluster}, sticky by {affinity}\n");
    for step in steps {
        page += &format!("  {step}\n");
    }
    page += &format!("  key {key}\n\n");
    let mut rows = table(["", "SLOT", "SCORE", "STATE", "PASSED OVER"]);
    for (place, candidate) in candidates.iter().enumerate() {
        rows.add_row([
            format!("{}.", place + 1),
            candidate.slot.clone(),
            candidate.score.clone(),
            candidate.state.clone(),
            candidate.skip.clone().unwrap_or_default(),
        ]);
    }
    let rows = right(&mut rows, 0..1);
    trimmed(&format!("{page}{rows}\n"))
}
