//! A tunnel between two Unix sockets, as a client and a backend see it.

use std::future::poll_fn;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::*;

/// "Hi", as a client sends it.
const HI: [u8; 8] = [0x81, 0x82, 1, 2, 3, 4, b'H' ^ 1, b'i' ^ 2];
/// Close 1000, as a client sends it and as a backend does.
const BYE: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 3, 0xe8];
const BYE_BACK: [u8; 4] = [0x88, 2, 3, 0xe8];

/// Carries until the end between what `client` and `backend` do.
async fn carry<C: Future<Output = ()>, B: Future<Output = ()>>(
    mut tunnel: Tunnel,
    client: impl FnOnce(UnixStream) -> C,
    backend: impl FnOnce(UnixStream) -> B,
) -> TunnelEnd {
    let (mut down, there) = UnixStream::pair().unwrap();
    let (mut up, here) = UnixStream::pair().unwrap();
    let drain = Drain::default();
    let ticket = Ticket::of_nobody();
    let conduct = Conduct {
        drain: &drain,
        ticket: &ticket,
    };
    let carried = async {
        let end = poll_fn(|cx| tunnel.poll(cx, (&mut down, &mut up), conduct)).await;
        // They notice.
        drop((down, up));
        end.expect("nothing is frozen")
    };
    let all = async { tokio::join!(carried, client(there), backend(here)).0 };
    let soon = tokio::time::timeout(Duration::from_secs(20), all);
    soon.await.expect("it ends")
}

fn begun() -> Tunnel {
    Tunnel::new(Out::default(), &[], &[])
}

/// Sends them one by one, each as a packet of its own that is read before the next one comes.
async fn one_by_one(stream: &mut UnixStream, bytes: &[u8]) {
    for byte in bytes {
        stream.write_all(&[*byte]).await.unwrap();
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }
}

async fn expect(stream: &mut UnixStream, bytes: &[u8]) {
    let mut came = vec![0; bytes.len()];
    stream.read_exact(&mut came).await.unwrap();
    assert!(came == bytes, "{came:?}");
}

#[tokio::test]
async fn frames_that_come_byte_by_byte_pass_and_are_counted() {
    let talk = [&HI[..], &HI, &BYE].concat();
    let answer = [&[0x82, 3, 1, 2, 3][..], &[0x89, 0], &BYE_BACK].concat();
    let end = carry(
        begun(),
        async |mut client| {
            one_by_one(&mut client, &talk).await;
            expect(&mut client, &answer).await;
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        },
        async |mut backend| {
            expect(&mut backend, &talk).await;
            one_by_one(&mut backend, &answer).await;
        },
    )
    .await;
    assert_eq!(end.outcome, Outcome::new("client", "closed"));
    assert_eq!((end.closed_by, end.code), (Some("client"), Some(1000)));
    assert_eq!((end.frames_up, end.frames_down), (3, 3));
    let traffic = Traffic {
        up: talk.len() as u64,
        down: answer.len() as u64,
    };
    assert_eq!(end.traffic, traffic);
}

#[tokio::test]
async fn what_is_not_taken_at_once_waits_and_keeps_its_order() {
    const FRAMES: usize = 300;
    let frame = |number: usize| {
        let mut frame = vec![0x82, 126, 0x40, 0];
        frame.extend((0..0x4000).map(|at| (at / 7 + number) as u8));
        frame
    };
    let up: Vec<u8> = HI.repeat(100_000);
    let end = carry(
        Tunnel::new(Out::default(), &up[..3], &frame(0)[..7]),
        async |client| {
            let (mut from, mut to) = client.into_split();
            let talks = async {
                to.write_all(&up[3..]).await.unwrap();
                to.write_all(&BYE).await.unwrap();
            };
            let hears = async {
                // Nobody reads until both directions are stuck.
                sleep(Duration::from_millis(300)).await;
                for number in 0..FRAMES {
                    let mut came = vec![0; 4 + 0x4000];
                    from.read_exact(&mut came).await.unwrap();
                    assert!(came == frame(number), "frame {number}");
                }
                let mut rest = Vec::new();
                from.read_to_end(&mut rest).await.unwrap();
                assert_eq!(rest, BYE_BACK);
            };
            tokio::join!(talks, hears);
        },
        async |backend| {
            let (mut from, mut to) = backend.into_split();
            let talks = async {
                to.write_all(&frame(0)[7..]).await.unwrap();
                for number in 1..FRAMES {
                    to.write_all(&frame(number)).await.unwrap();
                }
            };
            let hears = async {
                sleep(Duration::from_millis(300)).await;
                let mut came = vec![0; up.len() + BYE.len()];
                from.read_exact(&mut came).await.unwrap();
                assert!(came[..up.len()] == up && came[up.len()..] == BYE);
            };
            tokio::join!(talks, hears);
            to.write_all(&BYE_BACK).await.unwrap();
        },
    )
    .await;
    assert_eq!(end.outcome, Outcome::new("client", "closed"));
    assert_eq!(
        (end.frames_up, end.frames_down),
        (100_001, FRAMES as u64 + 1)
    );
    assert_eq!(end.traffic.down, FRAMES as u64 * 0x4004 + 4);
}

#[tokio::test]
async fn a_backend_that_ends_between_frames_leaves_a_close_and_within_one_does_not() {
    let whole = [0x81, 2, b'y', b'o'];
    let goodbye = async |mut client: UnixStream, is_whole: bool| {
        let mut came = Vec::new();
        client.write_all(&HI).await.unwrap();
        while client.read_buf(&mut came).await.unwrap() > 0 {
            if came.len() > whole.len() {
                client.write_all(&BYE).await.unwrap();
            }
        }
        match is_whole {
            true => assert_eq!((came[..4] == whole, came[4]), (true, 0x88)),
            false => assert_eq!(came, whole[..3]),
        }
    };
    for is_whole in [true, false] {
        let end = carry(
            begun(),
            |client| goodbye(client, is_whole),
            async |mut backend| {
                expect(&mut backend, &HI).await;
                let said = if is_whole { &whole[..] } else { &whole[..3] };
                one_by_one(&mut backend, said).await;
            },
        )
        .await;
        assert_eq!(end.outcome, Outcome::new("backend", "gone"));
        assert_eq!(end.closed_by, is_whole.then_some("proxy"));
        assert_eq!(end.frames_down, u64::from(is_whole));
    }
}

#[tokio::test]
async fn a_client_that_goes_without_a_word_is_gone_and_the_backend_hears_its_end() {
    let end = carry(
        begun(),
        async |mut client| {
            client.write_all(&HI[..5]).await.unwrap();
            expect(&mut client, &[0x81, 0]).await;
        },
        async |mut backend| {
            backend.write_all(&[0x81, 0]).await.unwrap();
            let mut came = Vec::new();
            backend.read_to_end(&mut came).await.unwrap();
            assert_eq!(came, HI[..5]);
        },
    )
    .await;
    assert_eq!(end.outcome, Outcome::new("client", "gone"));
    assert_eq!(
        (end.closed_by, end.frames_up, end.frames_down),
        (None, 0, 1)
    );
}

/// Of each there is one for every WebSocket, in one piece of memory.
#[test]
fn it_is_small() {
    assert!(size_of::<Tracker>() <= 32, "{}", size_of::<Tracker>());
    assert!(size_of::<Tunnel>() <= 136, "{}", size_of::<Tunnel>());
}
