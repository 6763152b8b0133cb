//! The daemon: `xrouter --lan IF --wan IF …`. Start-up in the order that [`crate::control::startup`] describes.

use super::{RunArgs, rules};
use crate::control::config::{Config, ConfigErrors, Source};
use crate::control::daemon;
use crate::control::startup::{self, Failure};
use crate::wire::Family;

pub(super) fn run(args: RunArgs) -> Result<(), Failure> {
    let config = configuration(args)?;
    startup::start_log();
    startup::check_interfaces(&config)?;
    startup::check_cores(&config)?;
    let (lan, wan) = (config.lan.as_str(), config.wan.as_str());
    let v4 = rules::read("--rules", config.rules.as_deref(), Family::V4, lan, wan)?;
    let v6 = rules::read("--rules6", config.rules6.as_deref(), Family::V6, lan, wan)?;
    startup::check_kernel()?;
    startup::check_privileges()?;
    daemon::run(&config, [v4, v6])
}

/// The configuration of the command line and the file that it names.
fn configuration(args: RunArgs) -> Result<Config, Failure> {
    let (command_line, file) = args.into_layer();
    let file = match file {
        None => None,
        Some(path) => {
            let source = Source { name: path.display().to_string(), text: startup::read_text("--config", &path)? };
            let layer = source.layer().map_err(|errors| Failure::Report(errors.to_string()))?;
            Some((layer, source))
        }
    };
    let with_hint = |errors: ConfigErrors| Failure::Report(format!("{errors}\n\nFor more information, try '--help'."));
    Config::from_layers(command_line, file).map_err(with_hint)
}
