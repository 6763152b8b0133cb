//! `xrouter explain PACKET`: what would become of it and why, asked of the running daemon or of files.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use super::DaemonArgs;
use crate::conntrack::Settings;
use crate::control::api::{Client, Reply, Request};
use crate::control::config::{Config, InterfaceName, Layer, Masquerade, Placed};
use crate::control::explain::{self, Explanation, GRAMMAR, Question, Scene, Sketch};
use crate::control::netlink::Netlink;
use crate::control::sources::{self, Sources};
use crate::control::startup::Failure;
use crate::device::PortId;
use crate::rules::RuleVector;
use crate::snapshot::{Policy, Routing};
use crate::time::Instant;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:
  What the running router would do:
      xrouter explain -i lan 'tcp 10.0.0.5:1234 > 1.1.1.1:443 syn'
  What these rules would do, on no router:
      xrouter explain --rules rules.v4 --lan eth0 --wan eth1 'udp 10.0.0.5:53 > 1.1.1.1:53'

Nothing is changed by asking: no counter, no limit, no connection. Of files there are no connections
(but `state ESTABLISHED`), and without --kernel-routes what arrives by one port leaves by the other.

Exit codes: 0 it passes; 1 it does not; 2 usage or rules; 4 no daemon.",
    after_long_help = GRAMMAR
)]
pub(super) struct ExplainArgs {
    /// The packet, such as 'tcp 10.0.0.5:1234 > 1.1.1.1:443 syn'; --help says what else
    #[arg(required = true, value_name = "PACKET")]
    packet: Vec<String>,
    /// Interface it arrives by: its name, or lan, wan [default: where its source is]
    #[arg(short, long, value_name = "IF")]
    input: Option<String>,
    /// As JSON, on one line
    #[arg(short = 'j', long)]
    json: bool,
    /// Only the rules that match
    #[arg(short, long)]
    matched: bool,
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    daemon: DaemonArgs,
}

/// Asks files, not the daemon.
#[derive(Debug, Args)]
struct FileArgs {
    /// Ask files: these IPv4 rules [default: the built-in policy]
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Ask files: these IPv6 rules [default: the built-in policy]
    #[arg(long, value_name = "FILE")]
    rules6: Option<PathBuf>,
    /// Ask files: the inside interface's name [default: lan]
    #[arg(long, value_name = "IF")]
    lan: Option<InterfaceName>,
    /// Ask files: the outside interface's name [default: wan]
    #[arg(long, value_name = "IF")]
    wan: Option<InterfaceName>,
    /// Ask files, with the rule of this option of the daemon
    #[arg(long, value_name = "VERSION", num_args = 0..=1, require_equals = true, default_missing_value = "ipv4")]
    masquerade: Option<Masquerade>,
    /// Ask files: those that this configuration names
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ask files, but take routes and neighbours of this machine's kernel
    #[arg(long)]
    kernel_routes: bool,
}

impl FileArgs {
    fn are_given(&self) -> bool {
        let files = self.rules.is_some() || self.rules6.is_some() || self.config.is_some() || self.masquerade.is_some();
        files || self.lan.is_some() || self.wan.is_some() || self.kernel_routes
    }
}

/// Prints the explanation. The failure without a text says that the packet does not pass.
pub(super) fn run(args: &ExplainArgs) -> Result<(), Failure> {
    let question = Question { packet: args.packet.join(" "), input: args.input.clone() };
    let sketch: Sketch = question.packet.parse().map_err(|wrong: String| no_packet(&question, &wrong))?;
    let mut explanation = match args.files.are_given() {
        true => ask_files(&args.files, &question, &sketch)?,
        false => ask_daemon(args, &question)?,
    };
    if args.matched {
        explanation.stages.iter_mut().for_each(|stage| stage.rules.retain(|step| step.matched || step.then.is_some()));
    }
    super::print(|out| match args.json {
        true => serde_json::to_writer(&mut *out, &explanation).map_err(Into::into).and_then(|()| writeln!(out)),
        false => write!(out, "{explanation}"),
    })?;
    match explanation.verdict.passes {
        true => Ok(()),
        false => Err(Failure::Answer(String::new())),
    }
}

fn no_packet(question: &Question, wrong: &str) -> Failure {
    Failure::Usage(format!("`{}`: {wrong}\n\n{GRAMMAR}", question.packet))
}

fn ask_daemon(args: &ExplainArgs, question: &Question) -> Result<Explanation, Failure> {
    let mut client = Client::connect(&args.daemon.control).map_err(|failure| match failure {
        Failure::NoDaemon(text) => Failure::NoDaemon(format!(
            "{text}. To ask files instead: --rules FILE, --lan IF, --wan IF or --config FILE"
        )),
        other => other,
    })?;
    client.ask(&Request::Explain(question.clone()))?;
    match client.answer()? {
        Reply::Explained(explanation) => Ok(*explanation),
        _ => Err(client.unexpected()),
    }
}

fn ask_files(files: &FileArgs, question: &Question, sketch: &Sketch) -> Result<Explanation, Failure> {
    let config = configuration(files)?;
    let styled = super::rules::colours();
    let sets = super::rules::read_sets(config.sets.as_deref())?;
    let rulesets = sources::rulesets(&config, &sets, styled)?;
    for warnings in rulesets.iter().map(|ruleset| ruleset.warnings()).filter(|warnings| !warnings.is_empty()) {
        super::complain(&sources::shown(warnings, styled));
    }
    let rulesets = rulesets.map(Arc::new);
    let names = [config.lan.as_str(), config.wan.as_str()];
    let [v4, v6] = rulesets.each_ref().map(|ruleset| RuleVector::compile(ruleset));
    let routing = match files.kernel_routes {
        true => kernel_routes(names)?,
        false => {
            // Which port it is does not depend on the routes, once it is named.
            let port = match &question.input {
                Some(name) if name == names[1] || name == "wan" && name != names[0] => PortId::WAN,
                _ => PortId::LAN,
            };
            explain::routes_assumed(names, sketch, port)
        }
    };
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
    let scene = Scene {
        rulesets,
        policy: Arc::new(Policy { generation: 1, v4, v6 }),
        routing,
        routes_assumed: !files.kernel_routes,
        settings: Settings::default(),
        connections: Vec::new(),
        now: Instant::from_secs(1_000_000),
        unix: (unix, 0),
    };
    explain::explain(question, &scene).map_err(Failure::Usage)
}

/// What the command line and the configuration file say. Without a file, the interfaces have names.
fn configuration(files: &FileArgs) -> Result<Config, Failure> {
    let name = |given: &Option<InterfaceName>, otherwise: &str| {
        let default = || otherwise.parse().ok().filter(|_| files.config.is_none());
        given
            .clone()
            .or_else(default)
            .map(|name| Placed::option(if otherwise == "lan" { "--lan" } else { "--wan" }, name))
    };
    let layer = Layer {
        lan: name(&files.lan, "lan"),
        wan: name(&files.wan, "wan"),
        rules: files.rules.clone().map(|path| Placed::option("--rules", path)),
        rules6: files.rules6.clone().map(|path| Placed::option("--rules6", path)),
        masquerade: files.masquerade.map(|versions| Placed::option("--masquerade", versions)),
        ..Layer::default()
    };
    Sources::new(layer, files.config.clone()).config()
}

/// The kernel's routes and neighbours as they are now.
fn kernel_routes(names: [&str; PortId::COUNT]) -> Result<Routing, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Running(format!("cannot make a runtime: {error}")))?;
    let _inside = runtime.enter();
    let netlink = Netlink::open(names)?;
    let routing = netlink.routing().load_full();
    Ok(Routing::clone(&routing))
}
