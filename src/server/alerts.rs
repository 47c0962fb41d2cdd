//! Alerts: the stream and the channel that tell when drift starts and ends.

use crate::server::api::{Context, LogLevel, Replication, ServerString};
use crate::server::drift::{Found, Target};
use crate::server::effects::{append_entry, Effects};
use crate::server::events::quietly;
use crate::server::key::{Key, Mode, Precision};
use crate::server::state::{PreparedView, STATE};
use crate::server::streams;
use feature_store_core::codec::{AlertEffect, Effect, StreamEntry};
use feature_store_core::drift::finding::{Alert, Finding};
use feature_store_core::drift::method::Method;

/// The key of the stream, and the name of the channel.
const ALERTS: &[u8] = b"fs:alerts";
/// About how many entries the stream keeps.
const ENTRIES_MAX: u64 = 10_000;

/// Starts and ends alerts as a check found it, p-values held against this level. Answers how many started.
pub(crate) fn update(context: Context<'_>, found: &[Found], significance: f64) -> u64 {
    let mut effects = Effects::new(context);
    let mut started = 0;
    for Found { target, findings } in found {
        let Some((prepared, feature)) = find(context, target) else { continue };
        let alerts = prepared.samples.drift(context).feature(feature).map_or(0, |f| f.alerts);
        for finding in findings {
            let was_alert = alerts & finding.method.bit() != 0;
            let is_alert = finding.keeps_alert(was_alert, significance);
            if is_alert != was_alert {
                started += u64::from(is_alert);
                tell(context, &prepared, feature, finding.method, is_alert, Some(finding), &mut effects);
            }
        }
    }
    // What is not tested any more has no alert.
    let is_tested = |prepared: &PreparedView, feature: &str, method: Method| {
        found.iter().any(|f| {
            f.target.view == prepared.view.name
                && f.target.version == prepared.view.version
                && f.target.feature == feature
                && f.findings.iter().any(|finding| finding.method == method)
        })
    };
    let all = STATE.borrow(context).all_versions();
    for prepared in &all {
        end_where(context, prepared, &mut effects, |feature, method| !is_tested(prepared, feature, method));
    }
    started
}

/// Ends all alerts of a version that is about to be dropped.
pub(crate) fn end_all(context: Context<'_>, prepared: &PreparedView, effects: &mut Effects<'_>) {
    end_where(context, prepared, effects, |_, _| true);
}

fn end_where(
    context: Context<'_>,
    prepared: &PreparedView,
    effects: &mut Effects<'_>,
    ends: impl Fn(&str, Method) -> bool,
) {
    let alerts: Vec<u16> = prepared.samples.drift(context).features().iter().map(|f| f.alerts).collect();
    for (feature, bits) in alerts.into_iter().enumerate().filter(|(_, bits)| *bits != 0) {
        let name = &prepared.view.features()[feature].name;
        for method in Method::ALL.into_iter().filter(|m| bits & m.bit() != 0 && ends(name, *m)) {
            tell(context, prepared, feature, method, false, None, effects);
        }
    }
}

fn find(context: Context<'_>, target: &Target) -> Option<(std::rc::Rc<PreparedView>, usize)> {
    let prepared = STATE.borrow(context).prepared_version(&target.view, target.version)?;
    let feature = prepared.view.position(target.feature.as_bytes(), 0)?;
    Some((prepared, feature))
}

fn set(context: Context<'_>, prepared: &PreparedView, feature: usize, method: Method, starts: bool) {
    if let Some(state) = prepared.samples.drift_mut(context).feature_mut(feature) {
        match starts {
            true => state.alerts |= method.bit(),
            false => state.alerts &= !method.bit(),
        }
    }
}

/// Notes that an alert starts or ends, and tells of it in the stream and on the channel.
fn tell(
    context: Context<'_>,
    prepared: &PreparedView,
    feature: usize,
    method: Method,
    starts: bool,
    finding: Option<&Finding>,
    effects: &mut Effects<'_>,
) {
    set(context, prepared, feature, method, starts);
    let (view, version) = (&prepared.view.name, prepared.view.version);
    let feature = &prepared.view.features()[feature].name;
    let alert = Alert { view, version, feature, starts, method, finding };
    let told: Vec<(&str, Vec<u8>)> = alert.members().into_iter().map(|(name, told)| (name, told.to_field())).collect();
    let fields: Vec<(&[u8], &[u8])> = told.iter().map(|(name, value)| (name.as_bytes(), value.as_slice())).collect();
    let key = ServerString::new(ALERTS);
    let stream = Key::open(context, &key, Mode::Write);
    let id = quietly(|| append_entry(context, &stream, &key, fields.iter().copied(), None));
    let trimmed_to = match id {
        Some(_) => quietly(|| streams::trim(context, &stream, &key, ENTRIES_MAX, Precision::Approximate)),
        None => {
            let what = format!("fs: key 'fs:alerts' has no place for the alert {}", alert.to_json());
            context.log(LogLevel::Warning, &what);
            None
        }
    };
    drop(stream);
    let entry = id.map(|id| StreamEntry { id, fields });
    let effect = AlertEffect { view, version, feature, method, starts, entry, trimmed_to };
    effects.push(&key, &Effect::Alert(effect));
    context.call(c"PUBLISH", &[ALERTS, alert.to_json().as_bytes()], Replication::Replicated);
}

/// Executes what the primary told of an alert.
pub(crate) fn execute(context: Context<'_>, name: &ServerString, effect: &AlertEffect<'_>) -> Result<(), String> {
    let target = Target { view: effect.view.to_owned(), version: effect.version, feature: effect.feature.to_owned() };
    if let Some((prepared, feature)) = find(context, &target) {
        set(context, &prepared, feature, effect.method, effect.starts);
    }
    let Some(StreamEntry { id, fields }) = &effect.entry else { return Ok(()) };
    let stream = Key::open(context, name, Mode::Write);
    append_entry(context, &stream, name, fields.iter().copied(), Some(*id))
        .ok_or_else(|| format!("entry {id} does not fit the alerts"))?;
    if let Some(length) = effect.trimmed_to {
        streams::trim(context, &stream, name, length, Precision::Exact);
    }
    Ok(())
}
