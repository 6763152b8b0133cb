use super::super::change::{ChangeReport, ChangeWish};
use super::super::explain::{Explanation, Question};
use super::super::stats;
use super::*;
use crate::conntrack::{ExpectTuple, Helper, TupleView};
use std::rc::Rc;

/// A backend with `count` connections over two workers, that looks at three of them at a time.
pub(crate) struct Fake {
    pub(crate) count: usize,
    events: broadcast::Sender<Told>,
    settings: std::cell::RefCell<BTreeMap<String, u64>>,
}

impl Fake {
    pub(crate) fn new(count: usize) -> Fake {
        let settings = BTreeMap::from([("nf_conntrack_max".to_owned(), 1000)]);
        Fake { count, events: broadcast::channel(16).0, settings: settings.into() }
    }
}

/// Even ones are IPv4, every fifth is UDP.
fn numbered(number: usize) -> ConnView {
    let v4 = number.is_multiple_of(2);
    let src: IpAddr = match v4 {
        true => std::net::Ipv4Addr::from(0x0a00_0000 + number as u32).into(),
        false => std::net::Ipv6Addr::from((0xfd00 << 112) + number as u128).into(),
    };
    let tuple = |src, dst| TupleView { src, dst, sport: 1, dport: 2, zone: 0 };
    let dst: IpAddr = if v4 { [1, 1, 1, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
    ConnView {
        family: if v4 { 2 } else { 10 },
        proto: if number.is_multiple_of(5) { 17 } else { 6 },
        timeout: 9,
        state: None,
        gre_timeouts: None,
        original: tuple(src, dst),
        reply: tuple(dst, src),
        counters: None,
        status: 0,
        mark: 0,
        helper: None,
        start: None,
        stop: None,
        id: number as u32,
    }
}

impl Backend for Fake {
    async fn stats(&self) -> Result<StatsReport, BackendError> {
        Ok(stats::sample())
    }

    fn workers(&self) -> usize {
        2
    }

    async fn walk(&self, worker: usize, mut walk: Box<Walk>) -> Result<Box<Walk>, BackendError> {
        if self.count > 1_000_000 {
            return Err(BackendError("worker 1 does not answer".into()));
        }
        assert!(walk.entries.is_empty() && walk.entries.capacity() > 0 && walk.budget > 0);
        let each = self.count / 2;
        let (first, end) = if worker == 0 { (0, each) } else { (each, self.count) };
        let from = first + walk.cursor.expect("not at the end");
        let upto = (from + 3).min(end);
        let filter = walk.filter;
        walk.entries.extend((from..upto).map(numbered).filter(|conn| filter.admits(conn)));
        walk.cursor = (upto < end).then_some(upto - first);
        Ok(walk)
    }

    async fn expecting(&self, worker: usize, mut walk: Box<Expecting>) -> Result<Box<Expecting>, BackendError> {
        assert!(walk.entries.is_empty() && walk.entries.capacity() > 0);
        let at = walk.cursor.expect("not at the end");
        let tuple = ExpectTuple {
            src: [10, 0, 0, 1].into(),
            dst: [10, 0, 0, 2].into(),
            sport: worker as u16,
            dport: at as u16,
        };
        let view = ExpectView {
            family: 2,
            proto: 6,
            timeout: 300,
            tuple,
            mask: tuple,
            master: tuple,
            flags: 0,
            class: 0,
            helper: Helper::Ftp,
        };
        if !walk.clear {
            walk.entries.push(view);
        }
        walk.cursor = (at < 2 && !walk.clear).then_some(at + 1);
        Ok(walk)
    }

    async fn get(&self, tuple: &Tuple) -> Result<Option<ConnView>, BackendError> {
        Ok((tuple.dport == 2).then(|| numbered(usize::from(tuple.sport))))
    }

    async fn events(&self) -> Result<broadcast::Receiver<Told>, BackendError> {
        let receiver = self.events.subscribe();
        for number in 0..self.count {
            let conn = numbered(number);
            let _ = self.events.send(Told::Event(EventReport { kind: EventKind::New, time: 5, portid: None, conn }));
        }
        Ok(receiver)
    }

    async fn sysctl(&self, set: &BTreeMap<String, u64>) -> Result<BTreeMap<String, u64>, BackendError> {
        self.settings.borrow_mut().extend(set.clone());
        Ok(self.settings.borrow().clone())
    }

    async fn sets(&self) -> Result<Vec<SetSummary>, BackendError> {
        Ok(Vec::new())
    }

    async fn sets_text(&self) -> Result<String, BackendError> {
        Ok(String::new())
    }

    async fn explain(&self, _: &Question) -> Result<Explanation, BackendError> {
        Err(BackendError("not here".to_owned()))
    }

    async fn trace(&self, _: TraceStep) -> Result<TraceNews, BackendError> {
        Err(BackendError("nothing to trace here".to_owned()))
    }

    async fn rules_text(&self, family: Family) -> Result<String, BackendError> {
        Ok(format!("*filter {family:?}\nCOMMIT\n"))
    }

    async fn reload(&self, wish: &Wish, _: u32) -> Result<ReloadReport, Refused> {
        match wish.styled {
            true => Err(Refused::Files("error: line 7 is wrong".into())),
            false => Ok(ReloadReport { established: wish.established(), ended: 3, ..ReloadReport::default() }),
        }
    }

    async fn change(&self, wish: ChangeWish, _: u32) -> Result<ChangeReport, Refused> {
        match wish.text.contains("wrong") {
            true => Err(Refused::Files(format!("error: {} is wrong", wish.name))),
            false => Ok(ChangeReport { family: wish.family, added: 1, ..ChangeReport::default() }),
        }
    }
}

/// A path for a socket in a directory of its own that goes away with the value.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let directory = std::env::temp_dir().join(format!("xr{}-{name}", std::process::id()));
        Place(directory)
    }
    fn socket(&self) -> PathBuf {
        self.0.join("deep/x.sock")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs `ask` in a thread of its own against a server with this many connections.
fn with_server<T: Send + 'static>(name: &str, count: usize, ask: impl FnOnce(&Path) -> T + Send + 'static) -> T {
    let place = Place::new(name);
    let path = place.socket();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let socket = ControlSocket::bind(&path).expect("a free path");
        assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o660);
        let backend = Rc::new(Fake::new(count));
        let asked = path.clone();
        let mut thread = tokio::task::spawn_blocking(move || ask(&asked));
        let answer = tokio::select! {
            () = socket.serve(&*backend) => unreachable!("it serves for ever"),
            answer = &mut thread => answer.expect("the client does not panic"),
        };
        drop(socket);
        assert!(!path.exists(), "the socket's file is removed");
        answer
    })
}

fn raw(path: &Path, bytes: &[u8]) -> Vec<String> {
    let mut stream = std::os::unix::net::UnixStream::connect(path).expect("it listens");
    // The server may close before it has read all of a long request.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    BufReader::new(stream).lines().map_while(Result::ok).collect()
}

#[test]
fn stats_and_rules_are_answered() {
    let (stats, rules) = with_server("stats", 0, |path| {
        let mut client = Client::connect(path).expect("it listens");
        client.ask(&Request::Stats {}).expect("sent");
        let stats = client.answer().expect("an answer");
        client.ask(&Request::Rules { family: 6 }).expect("sent, on the same connection");
        (stats, client.answer().expect("an answer"))
    });
    let Reply::Stats(value) = stats else { panic!("{stats:?}") };
    assert_eq!(serde_json::from_value::<StatsReport>(value).expect("a report"), stats::sample());
    assert_eq!(rules, Reply::Rules("*filter V6\nCOMMIT\n".into()));
}

/// The numbers of the connections in an answer.
fn numbers(lines: &[String]) -> Vec<u32> {
    lines
        .iter()
        .filter_map(|line| match serde_json::from_str(line).expect("a reply") {
            Reply::Conn(conn) => Some(conn.id),
            _ => None,
        })
        .collect()
}

#[test]
fn a_listing_has_every_connection_once_and_an_end() {
    for count in [0, 1, 6, 7, 1000] {
        let lines = with_server(&format!("list{count}"), count, |path| raw(path, b"{\"verb\":\"conntrack\"}\n"));
        assert_eq!(numbers(&lines), (0..count as u32).collect::<Vec<_>>());
        assert_eq!(lines[count..], [format!("{{\"end\":{{\"count\":{count}}}}}")]);
    }
}

#[test]
fn listings_are_filtered_and_deletions_told() {
    let request =
        b"{\"verb\":\"conntrack\",\"filter\":{\"family\":4,\"proto\":6,\"original\":{\"src\":\"10.0.0.0/29\"}}}";
    let lines = with_server("filter", 20, |path| raw(path, request));
    assert_eq!((numbers(&lines), &*lines[3]), (vec![2, 4, 6], "{\"end\":{\"count\":3}}"));
    let request = b"{\"verb\":\"delete\",\"filter\":{\"original\":{\"src\":\"fd00::3\"}}}\n";
    let lines = with_server("delete", 9, |path| raw(path, request));
    assert_eq!((numbers(&lines), &*lines[1]), (vec![3], "{\"end\":{\"count\":1}}"));
    let lines = with_server("quiet", 9, |path| raw(path, b"{\"verb\":\"delete\",\"quiet\":true}"));
    assert_eq!(lines, ["{\"end\":{\"count\":9}}"]);
}

#[test]
fn one_connection_is_got() {
    let get = |sport: u16, dport: u16| {
        let request = format!(
            "{{\"verb\":\"get\",\"family\":4,\"proto\":6,\"src\":\"1.2.3.4\",\"dst\":\"1.1.1.1\",\"sport\":{sport},\"dport\":{dport}}}"
        );
        with_server(&format!("get{dport}"), 9, move |path| raw(path, request.as_bytes()))
    };
    assert_eq!(numbers(&get(4, 2)), [4]);
    assert_eq!(get(4, 3), ["{\"none\":{}}"]);
}

#[test]
fn settings_are_shown_and_changed() {
    let lines = with_server("sysctl", 0, |path| {
        raw(path, b"{\"verb\":\"sysctl\"}\n{\"verb\":\"sysctl\",\"set\":{\"nf_conntrack_max\":7}}\n{\"verb\":\"sysctl\",\"set\":{\"x\":-1}}")
    });
    assert_eq!(lines[..2], ["{\"sysctl\":{\"nf_conntrack_max\":1000}}", "{\"sysctl\":{\"nf_conntrack_max\":7}}"]);
    assert!(lines[2].starts_with("{\"error\":"), "{}", lines[2]);
}

#[test]
fn a_reload_tells_what_it_did_or_what_is_wrong() {
    let lines = with_server("reload", 0, |path| {
        let requests = [
            r#"{"verb":"reload"}"#,
            r#"{"verb":"reload","established":"flush","dry_run":true}"#,
            r#"{"verb":"reload","styled":true}"#,
            r#"{"verb":"reload","established":"some"}"#,
            r#"{"verb":"reload","dry-run":true}"#,
        ];
        raw(path, requests.join("\n").as_bytes())
    });
    let report = |line: &str| match serde_json::from_str(line).expect("a reply") {
        Reply::Reloaded(report) => report.established,
        other => panic!("{other:?}"),
    };
    use super::super::reload::Established;
    assert_eq!((report(&lines[0]), report(&lines[1])), (Established::Recheck, Established::Flush));
    assert_eq!(lines[2], r#"{"refused":"error: line 7 is wrong"}"#);
    assert!(lines[3..].iter().all(|line| line.starts_with("{\"error\":")), "{lines:?}");
}

#[test]
fn listeners_hear_what_they_asked_for_and_what_they_lost() {
    let listen = |count, request: &'static str| {
        with_server(&format!("listen{count}"), count, move |path| {
            let mut stream = std::os::unix::net::UnixStream::connect(path).expect("it listens");
            stream.write_all(request.as_bytes()).expect("sent");
            let mut lines = Vec::new();
            for line in BufReader::new(stream).lines() {
                let reply: Reply = serde_json::from_str(&line.expect("a line")).expect("a reply");
                let last = matches!(&reply, Reply::Event(event) if event.conn.id as usize == count - 1);
                lines.push(reply);
                if last {
                    return lines;
                }
            }
            panic!("it ended: {lines:?}")
        })
    };
    let lines = listen(10, "{\"verb\":\"events\",\"filter\":{\"family\":6}}\n");
    assert_eq!((&lines[0], lines.len()), (&Reply::Listening {}, 6), "{lines:?}");
    // The fake keeps sixteen.
    let lines = listen(100, "{\"verb\":\"events\",\"events\":\"NEW\"}\n");
    assert_eq!((&lines[1], lines.len()), (&Reply::Lost { count: 84 }, 18), "{lines:?}");
}

#[test]
fn bad_requests_get_an_error_and_the_next_is_served() {
    let requests: [&[u8]; 7] = [
        b"garbage",
        b"",
        b"{\"verb\":\"dance\"}",
        b"\xff\xfe",
        b"{\"verb\":\"stats\",\"x\":1}",
        b"{\"verb\":\"rules\",\"family\":5}",
        b"{\"verb\":\"rules\"}",
    ];
    let lines = with_server("bad", 0, move |path| raw(path, &requests.join(&b'\n')));
    assert_eq!(lines.len(), 6, "{lines:?}");
    assert!(lines[..5].iter().all(|line| line.starts_with("{\"error\":")), "{lines:?}");
    assert!(lines[1].contains("dance"), "{}", lines[1]);
    assert!(lines[5].starts_with("{\"rules\":"));
}

#[test]
fn an_endless_request_is_cut_off() {
    let lines = with_server("long", 0, |path| raw(path, &vec![b'x'; MAX_REQUEST + 100_000]));
    assert_eq!(lines, [format!("{{\"error\":\"request is longer than {MAX_REQUEST} bytes\"}}")]);
    // As long as allowed is still read.
    let mut longest = b"{\"verb\":\"rules\"}".to_vec();
    longest.resize(MAX_REQUEST - 1, b' ');
    longest.push(b'\n');
    let lines = with_server("longest", 0, move |path| raw(path, &longest));
    assert!(lines[0].starts_with("{\"rules\":"), "{lines:?}");
}

#[test]
fn a_silent_worker_is_an_error_for_the_client() {
    let failure = with_server("silent", 2_000_000, |path| {
        let mut client = Client::connect(path).expect("it listens");
        client.ask(&Request::Conntrack { filter: ConnFilter::default() }).expect("sent");
        client.answer().expect_err("the fake refuses")
    });
    assert!(failure.message().ends_with("says: worker 1 does not answer"), "{failure}");
    assert_eq!(failure.exit_code(), 1);
}

#[test]
fn nobody_listening_is_exit_code_4() {
    let place = Place::new("nobody");
    let failure = Client::connect(&place.socket()).expect_err("nobody there");
    assert_eq!(failure.exit_code(), 4);
    assert!(
        failure.message().contains("x.sock") && failure.message().contains("xrouter --lan IF --wan IF"),
        "{failure}"
    );
}

#[test]
fn paths_are_taken_over_only_from_the_dead() {
    let place = Place::new("path");
    let path = place.socket();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    let living = ControlSocket::bind(&path).expect("a free path");
    let refused = ControlSocket::bind(&path).expect_err("somebody lives there");
    assert!(refused.message().contains("another xrouter is running"), "{refused}");
    assert_eq!(refused.exit_code(), 1);
    assert!(path.exists());
    drop(living);
    // A dead daemon's: bound, then closed without removing the file.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("free again"));
    assert!(path.exists());
    drop(ControlSocket::bind(&path).expect("taken over"));
    fs::write(&path, "precious").expect("written");
    assert_eq!(ControlSocket::bind(&path).expect_err("no socket").exit_code(), 2);
    assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600)) {
        let lines = with_server("fuzz", 2, move |path| raw(path, &bytes));
        for line in lines {
            proptest::prop_assert!(serde_json::from_str::<Reply>(&line).is_ok(), "{}", line);
        }
    }
}
