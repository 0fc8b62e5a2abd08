//! `homescar simulate`: who would move.

use form_urlencoded::Serializer;

use super::{
    Exit, socket,
    status::{right, table, trimmed},
};
use crate::admin::view::Simulation;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The cluster
    cluster: String,
    /// A slot that would go; may be given again
    #[arg(long, value_name = "SLOT")]
    remove: Vec<String>,
    /// How many workers would come
    #[arg(long, value_name = "N", default_value_t = 0)]
    add: usize,
    #[command(flatten)]
    socket: socket::Arguments,
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    let mut query = Serializer::new(String::new());
    query.append_pair("cluster", &arguments.cluster);
    query.append_pair("add", &arguments.add.to_string());
    for slot in &arguments.remove {
        query.append_pair("remove", slot);
    }
    let path = format!("/simulate?{}", query.finish());
    arguments.socket.ask::<Simulation>(&path, text)
}

fn text(simulation: &Simulation) -> String {
    let Simulation {
        cluster,
        before,
        after,
        clients,
        moved,
        moves,
        note,
    } = simulation;
    let mut page = format!(
        "{cluster}: {before} → {after} slots would move {moved} of the {clients} clients that are \
         connected now\n"
    );
    if let Some(note) = note {
        page += &format!("({note})\n");
    }
    if moves.is_empty() {
        return page;
    }
    let mut rows = table(["FROM", "TO", "CLIENTS"]);
    for one in moves {
        rows.add_row([one.from.clone(), one.to.clone(), one.clients.to_string()]);
    }
    let rows = right(&mut rows, 2..3);
    trimmed(&format!("{page}\n{rows}\n"))
}
