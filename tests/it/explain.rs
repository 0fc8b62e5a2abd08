//! What is told of a client's way is the way that it goes; what is simulated is what happens.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    process::Output,
    time::Duration,
};

use homescar::admin::{
    client::Client as Admin,
    view::{Explanation, Outlook, Simulation, Slot, Status},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::{
    client::{Client, Who, address_of_client},
    homescar::{Homescar, SOON, WORKER},
};

const WORKERS: usize = 4;
const CLIENTS: usize = 30;

/// Test workers, of which one ends at once for as long as the file `flag` names its slot.
fn config(flag: &str) -> String {
    let script =
        format!("[ \"$(cat {flag} 2>/dev/null)\" = \"$HOMESCAR_SLOT\" ] && exit 3; exec {WORKER}");
    let command = json!(["sh", "-c", script]);
    format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app]
        on_down = "next"
        workers = {{ command = {command}, count = {WORKERS} }}
        "#
    )
}

async fn tell(homescar: &Homescar, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_homescar"));
    command.args(arguments);
    command.arg("--socket").arg(homescar.admin_socket());
    command.output().await.unwrap()
}

async fn done(homescar: &Homescar, arguments: &[&str]) -> Vec<u8> {
    let output = tell(homescar, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output.stdout
}

async fn explain(homescar: &Homescar, client: &str) -> Explanation {
    let told = done(homescar, &["explain", client, "--json"]).await;
    serde_json::from_slice(&told).unwrap()
}

async fn simulate(homescar: &Homescar, change: &[&str]) -> Simulation {
    let arguments = [&["simulate", "app", "--json"], change].concat();
    serde_json::from_slice(&done(homescar, &arguments).await).unwrap()
}

/// Waits until the slots are as wanted.
async fn slots_are(homescar: &Homescar, what: &str, condition: impl Fn(&[Slot]) -> bool) {
    let deadline = Instant::now() + 2 * SOON;
    loop {
        let mut admin = Admin::connect(&homescar.admin_socket()).await.unwrap();
        let status: Status = admin.get("/status").await.unwrap();
        let slots = &status.clusters[0].slots;
        if condition(slots) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {slots:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn whoami(from: IpAddr, to: SocketAddr) -> Who {
    let mut client = Client::connect_from(from, to).await.unwrap();
    client.whoami().await.unwrap()
}

/// Every client goes where `explain` says, to the process that it names. Returns how many came to
/// another slot than their own.
async fn agrees(homescar: &Homescar, to: SocketAddr) -> usize {
    let mut passed = 0;
    for client in 0..CLIENTS {
        let address = address_of_client(client);
        let told = explain(homescar, &address.to_string()).await;
        let who = whoami(address, to).await;
        assert_eq!(told.outcome, Outlook::Goes, "{told:?}");
        assert_eq!(told.slot.as_deref(), Some(&*who.slot), "{told:?}");
        let backend = told.backend.as_ref().unwrap();
        assert_eq!(
            (backend.generation, backend.pid),
            (who.generation, Some(who.pid))
        );
        let [home, ..] = &*told.candidates else {
            panic!("no candidates");
        };
        assert_eq!(home.skip.is_none(), home.slot == who.slot, "{told:?}");
        passed += usize::from(home.slot != who.slot);
    }
    passed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_goes_where_it_is_told_to_go() {
    let folder = tempfile::TempDir::new().unwrap();
    let flag = folder.path().join("flag");
    let homescar = Homescar::serve(&config(flag.to_str().unwrap()));
    let pids = homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    assert_eq!(agrees(&homescar, to).await, 0, "everybody is at home");

    done(&homescar, &["drain", "app/0"]).await;
    let drained = agrees(&homescar, to).await;
    assert!(drained > 0, "nobody's home was app/0");

    fs::write(&flag, "app/1").unwrap();
    kill(Pid::from_raw(pids[1].try_into().unwrap()), Signal::SIGKILL).unwrap();
    slots_are(&homescar, "a crash loop", |slots| {
        slots[1].state == "crash_loop"
    })
    .await;
    assert!(
        agrees(&homescar, to).await > drained,
        "nobody's home was app/1"
    );

    // For a person: the reason stands beside the slot that has it.
    let text = String::from_utf8(done(&homescar, &["explain", "127.1.0.1:4711"]).await).unwrap();
    assert!(text.starts_with("127.1.0.1 goes to app/"), "{text}");
    assert!(text.contains("key 7f010001"), "{text}");
    let row = |slot: &str| {
        let mut lines = text.lines();
        lines.find(|line| line.contains(". ") && line.contains(slot))
    };
    assert!(row("app/1").unwrap().contains("crash_loop"), "{text}");
    assert!(row("app/0").unwrap().contains("draining"), "{text}");

    for (arguments, why) in [
        (&["explain", "localhost"][..], "is no IPv4 or IPv6 address"),
        (&["explain", "::1", "--cluster", "web"], "there are app"),
        (
            &["simulate", "app", "--remove", "app/9"],
            "there is no slot app/9",
        ),
    ] {
        let output = tell(&homescar, arguments).await;
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(why), "{said}");
        assert_eq!(output.status.code(), Some(1));
    }
}

type Homes = BTreeMap<IpAddr, String>;

async fn homes(to: SocketAddr) -> Homes {
    let mut homes = Homes::new();
    for client in 0..CLIENTS {
        let address = address_of_client(client);
        homes.insert(address, whoami(address, to).await.slot);
    }
    homes
}

/// How many went from where to where.
fn moves(before: &Homes, after: &Homes) -> BTreeMap<(String, String), usize> {
    let mut moves = BTreeMap::new();
    for (client, from) in before {
        let to = &after[client];
        if from != to {
            *moves.entry((from.clone(), to.clone())).or_default() += 1;
        }
    }
    moves
}

fn told(simulation: &Simulation) -> BTreeMap<(String, String), usize> {
    let moves = simulation.moves.iter();
    let told: BTreeMap<_, _> = moves
        .map(|one| ((one.from.clone(), one.to.clone()), one.clients))
        .collect();
    assert_eq!(told.values().sum::<usize>(), simulation.moved);
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_would_move_is_who_moves() {
    let homescar = Homescar::serve(&config("/dev/null"));
    homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let mut open = Vec::new();
    // Two connections of an address are one client.
    for client in (0..CLIENTS).chain([0, 1]) {
        let mut one = Client::connect_from(address_of_client(client), to)
            .await
            .unwrap();
        one.whoami().await.unwrap();
        open.push(one);
    }
    let before = homes(to).await;
    let fewer = simulate(&homescar, &["--remove", "app/3"]).await;
    let more = simulate(&homescar, &["--add", "2"]).await;
    assert_eq!(
        (fewer.clients, fewer.before, fewer.after),
        (CLIENTS, WORKERS, WORKERS - 1)
    );
    assert_eq!((more.clients, more.after), (CLIENTS, WORKERS + 2));
    assert!(fewer.moved > 0 && more.moved > 0, "{fewer:?} {more:?}");
    assert_eq!(
        moves(&before, &homes(to).await),
        BTreeMap::new(),
        "nothing was changed"
    );
    drop(open);

    done(&homescar, &["scale", "app", "6"]).await;
    let all_ready = |count| {
        move |slots: &[Slot]| slots.len() == count && slots.iter().all(|s| s.state == "ready")
    };
    slots_are(&homescar, "two more", all_ready(WORKERS + 2)).await;
    assert_eq!(moves(&before, &homes(to).await), told(&more));

    done(&homescar, &["scale", "app", "3"]).await;
    slots_are(&homescar, "three", all_ready(WORKERS - 1)).await;
    assert_eq!(moves(&before, &homes(to).await), told(&fewer));
}

/// In direct mode it is the kernel that knows who is connected.
#[tokio::test]
async fn who_would_move_is_known_in_direct_mode_too() {
    let direct = config("/dev/null")
        .replace("cluster = \"app\"", "cluster = \"app\"\nmode = \"direct\"")
        .replace("workers = {", "workers = { contract = \"fd\",");
    let homescar = Homescar::serve(&direct);
    homescar.all_ready("app", WORKERS).await;
    let to = homescar.address("web").await;
    let mut open = Vec::new();
    let mut of_last = 0;
    for client in (0..CLIENTS).chain([0, 1]) {
        let from = address_of_client(client);
        let mut one = Client::connect_from(from, to).await.unwrap();
        let who = one.whoami().await.unwrap();
        of_last += usize::from(who.slot == "app/3" && open.len() < CLIENTS);
        open.push(one);
    }
    let fewer = simulate(&homescar, &["--remove", "app/3"]).await;
    assert_eq!(
        (fewer.clients, fewer.moved),
        (CLIENTS, of_last),
        "{fewer:?}"
    );
    assert!(of_last > 0 && fewer.note.is_none());
    assert!(fewer.moves.iter().all(|one| one.from == "app/3"));
}
