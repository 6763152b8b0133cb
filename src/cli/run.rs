//! The daemon: `xrouter --lan IF --wan IF …`. Start-up in the order that [`crate::control::startup`] describes.

use std::sync::Arc;

use super::RunArgs;
use crate::control::sources::{self, Sources};
use crate::control::startup::{self, Failure};
use crate::control::{daemon, host};
use crate::rules::SetTable;
use crate::time::Instant;

pub(super) fn run(args: RunArgs) -> Result<(), Failure> {
    let (command_line, file) = args.into_layer();
    let sources = Sources::new(command_line, file);
    let config = sources.config()?;
    startup::start_log();
    startup::check_interfaces(&config)?;
    startup::check_cores(&config)?;
    let styled = super::rules::colours();
    let sets = Arc::new(sources::sets(&config, &SetTable::new(startup::secret()?), Instant::ZERO, styled)?);
    let rulesets = sources::rulesets(&config, &sets, styled)?;
    for warnings in rulesets.iter().map(|ruleset| ruleset.warnings()).filter(|warnings| !warnings.is_empty()) {
        super::complain(&sources::shown(warnings, styled));
    }
    if let Some(lack) = sources::lacking(&config, [&rulesets[0], &rulesets[1]]) {
        super::complain(&format!("warning: {lack}"));
    }
    startup::check_kernel()?;
    startup::check_privileges()?;
    host::apply(&config, [&rulesets[0], &rulesets[1]])?;
    daemon::run(sources, &config, rulesets)
}
