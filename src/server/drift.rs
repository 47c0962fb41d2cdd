//! FS.DRIFT and the periodic check: the main thread copies windows out, a thread of its own compares them.
//!
//! Calls and checks take turns, feature by feature. What is copied out at a time is bounded, in time on the main thread
//! and in number on the other; what a check found is worked off in slices too.

use crate::server::alerts;
use crate::server::api::{api, Context};
use crate::server::background::{may_write, wake, Deadline, Left};
use crate::server::blocked::{Abandon, BlockedCaller, CallerId};
use crate::server::command::guarded;
use crate::server::config;
use crate::server::effects::Effects;
use crate::server::reply::Protocol;
use crate::server::state::{PreparedView, STATE};
use feature_store_core::definition::FeatureView;
use feature_store_core::drift::alert::{ActiveAlerts, Levels};
use feature_store_core::drift::baseline::Baseline;
use feature_store_core::drift::compare::findings;
use feature_store_core::drift::current::Observed;
use feature_store_core::drift::finding::Finding;
use feature_store_core::drift::method::{fitting, Test};
use feature_store_core::{Code, Error};
use lazy_static::lazy_static;
use redis_module::raw;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex};

/// Features that the thread has at a time: what is copied out for it is bounded by that.
const IN_FLIGHT_MAX: usize = 8;
/// The clock is looked at this often for a check that may be due.
const LOOK_MS: i64 = 1_000;

/// What is to be tested.
#[derive(Clone)]
pub(crate) struct Target {
    /// The view as it was when this began.
    pub(crate) view: Arc<FeatureView>,
    /// The feature's index.
    pub(crate) feature: usize,
}

impl Target {
    pub(crate) fn new(prepared: &PreparedView, feature: usize) -> Self {
        Target { view: Arc::clone(&prepared.view), feature }
    }

    /// The view that it is about now, if that has such a feature in the same place.
    pub(crate) fn prepared(&self, context: Context<'_>) -> Option<Rc<PreparedView>> {
        let prepared = STATE.borrow(context).prepared_version(&self.view.name, self.view.version)?;
        let (now, then) = (prepared.view.features().get(self.feature)?, &self.view.features()[self.feature]);
        (now.name == then.name && now.ty == then.ty).then_some(prepared)
    }
}

/// A target with what was found.
pub(crate) struct Found {
    pub(crate) target: Target,
    /// Of which baseline and window, see [`Samples::identity`](crate::server::samples::Samples::identity).
    pub(crate) identity: Option<(u64, u32)>,
    pub(crate) findings: Vec<Finding>,
}

/// Whom the findings are for.
enum Purpose {
    Call { caller: BlockedCaller, protocol: Protocol, view: Arc<FeatureView> },
    Check,
}

/// Tests that belong together.
struct Job {
    number: u64,
    purpose: Purpose,
    /// What is still to be copied out.
    targets: VecDeque<Target>,
    /// By which methods; none: all that fit.
    tests: Vec<Test>,
    /// How many features the thread has.
    in_flight: usize,
    found: VecDeque<Found>,
    /// A test ended in a panic.
    has_failed: bool,
    /// Something that was to be tested is not there any more.
    is_gone: bool,
}

/// A check whose findings are being told.
struct Conclusion {
    found: VecDeque<Found>,
    levels: Levels,
    insufficient: u64,
}

/// Figures of checks.
#[derive(Default)]
pub(crate) struct CheckFigures {
    /// Checks that were finished since the start.
    pub(crate) checks: u64,
    /// Tests of the last check that had too few values.
    pub(crate) insufficient: u64,
    /// Alerts that this server started since its start.
    pub(crate) alerts_started: u64,
}

/// All tests that are under way.
#[derive(Default)]
pub(crate) struct DriftWork {
    jobs: VecDeque<Job>,
    conclusion: Option<Conclusion>,
    last_number: u64,
    checked_at_ms: Option<i64>,
    pub(crate) figures: CheckFigures,
}

struct Request {
    job: u64,
    target: Target,
    identity: Option<(u64, u32)>,
    baseline: Arc<Baseline>,
    observed: Observed,
    tests: Vec<Test>,
}

struct Response {
    job: u64,
    target: Target,
    identity: Option<(u64, u32)>,
    /// `None`: the test panicked.
    findings: Option<Vec<Finding>>,
}

struct Thread {
    requests: Sender<Request>,
    responses: Mutex<Receiver<Response>>,
}

lazy_static! {
    static ref THREAD: Thread = {
        let (requests, incoming) = channel::<Request>();
        let (outgoing, responses) = channel();
        let work = move || {
            for Request { job, target, identity, baseline, observed, tests } in incoming {
                let findings = catch_unwind(AssertUnwindSafe(|| findings(&baseline, observed, &tests))).ok();
                if outgoing.send(Response { job, target, identity, findings }).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().name("fs-drift".to_owned()).spawn(work).expect("the system starts one more thread");
        Thread { requests, responses: Mutex::new(responses) }
    };
}

impl DriftWork {
    fn push(&mut self, purpose: Purpose, targets: VecDeque<Target>, tests: Vec<Test>) {
        self.last_number += 1;
        let (number, found) = (self.last_number, VecDeque::new());
        self.jobs.push_back(Job {
            number,
            purpose,
            targets,
            tests,
            in_flight: 0,
            found,
            has_failed: false,
            is_gone: false,
        });
    }

    /// The next target. Its job comes last from now on, so that all move on.
    fn next_target(&mut self) -> Option<(u64, Target, Vec<Test>)> {
        if self.jobs.iter().map(|job| job.in_flight).sum::<usize>() >= IN_FLIGHT_MAX {
            return None;
        }
        let place = self.jobs.iter().position(|job| !job.targets.is_empty())?;
        let mut job = self.jobs.remove(place)?;
        let next = job.targets.pop_front().map(|target| (job.number, target, job.tests.clone()));
        self.jobs.push_back(job);
        next
    }

    fn job(&mut self, number: u64) -> Option<&mut Job> {
        self.jobs.iter_mut().find(|job| job.number == number)
    }

    fn take_finished(&mut self) -> Option<Job> {
        let finished = self.jobs.iter().position(|job| job.targets.is_empty() && job.in_flight == 0)?;
        self.jobs.remove(finished)
    }

    fn take_of(&mut self, id: CallerId) -> Option<Job> {
        let is_of = |job: &Job| matches!(&job.purpose, Purpose::Call { caller, .. } if caller.id() == Some(id));
        let place = self.jobs.iter().position(is_of)?;
        self.jobs.remove(place)
    }

    fn is_checking(&self) -> bool {
        self.conclusion.is_some() || self.jobs.iter().any(|job| matches!(job.purpose, Purpose::Check))
    }
}

impl Abandon for DriftWork {
    fn abandon(context: Context<'_>, id: CallerId) {
        let job = STATE.borrow_mut(context).background.drift.take_of(id);
        if let Some(Job { purpose: Purpose::Call { caller, .. }, .. }) = job {
            caller.abandon();
        }
    }
}

/// Tests for a caller, who waits.
pub(crate) fn call(context: Context<'_>, view: Arc<FeatureView>, targets: Vec<Target>, tests: Vec<Test>) {
    let protocol = context.protocol();
    let purpose = Purpose::Call { caller: BlockedCaller::of_one_who_may_leave::<DriftWork>(context), protocol, view };
    STATE.borrow_mut(context).background.drift.push(purpose, targets.into(), tests);
    wake(context);
}

/// Copies out, collects and answers until the deadline.
pub(crate) fn slice(context: Context<'_>, deadline: Deadline) -> Left {
    collect(context);
    // Of each at least one: consumers may have used up the time.
    while submit_next(context) && !deadline.is_over() {}
    while finish_next(context) && !deadline.is_over() {}
    while conclude_next(context) && !deadline.is_over() {}
    let drift = &STATE.borrow(context).background.drift;
    match drift.jobs.is_empty() && drift.conclusion.is_none() {
        true => Left::Nothing,
        false => Left::Work,
    }
}

/// Gives the thread one more feature. False: there is none, or it has enough.
fn submit_next(context: Context<'_>) -> bool {
    let next = STATE.borrow_mut(context).background.drift.next_target();
    let Some((job, target, tests)) = next else { return false };
    let request = copy_out(context, job, &target, &tests);
    let is_gone = target.prepared(context).is_none();
    let mut state = STATE.borrow_mut(context);
    let Some(job) = state.background.drift.job(job) else { return true };
    match request {
        Some(request) => {
            job.in_flight += 1;
            drop(state);
            THREAD.requests.send(request).expect("the thread of drift runs as long as the server");
        }
        // Alerts of what cannot be tested any more are to end.
        None if matches!(job.purpose, Purpose::Check) => {
            drop(state);
            let identity = target.prepared(context).and_then(|p| p.samples.identity(context, target.feature));
            let found = Found { target, identity, findings: Vec::new() };
            if let Some(job) = STATE.borrow_mut(context).background.drift.jobs.back_mut() {
                job.found.push_back(found);
            }
        }
        None => job.is_gone |= is_gone,
    }
    true
}

/// `None`: the feature is gone, or has nothing to be compared with by these methods any more.
fn copy_out(context: Context<'_>, job: u64, target: &Target, tests: &[Test]) -> Option<Request> {
    let prepared = target.prepared(context)?;
    let drift = prepared.samples.drift(context);
    let identity = prepared.samples.identity(context, target.feature);
    let baseline = drift.baseline(&prepared.view, target.feature).ok()??;
    let tests = fitting(&baseline, tests);
    let observed = drift.observe(&prepared.view, target.feature, context.now_ms())?;
    let target = target.clone();
    (!tests.is_empty()).then_some(Request { job, target, identity, baseline, observed, tests })
}

/// Takes what the thread has found.
fn collect(context: Context<'_>) {
    let Ok(responses) = THREAD.responses.lock() else { return };
    while let Ok(Response { job, target, identity, mut findings }) = responses.try_recv() {
        findings.iter_mut().flatten().for_each(|finding| find_names(context, &target, finding));
        let mut state = STATE.borrow_mut(context);
        // Jobs whose caller has left are gone.
        let Some(job) = state.background.drift.job(job) else { continue };
        job.in_flight -= 1;
        match findings {
            Some(findings) => job.found.push_back(Found { target, identity, findings }),
            None => job.has_failed = true,
        }
    }
}

/// The names of categories that the baseline does not have: only the window knows them.
fn find_names(context: Context<'_>, target: &Target, finding: &mut Finding) {
    let Some(prepared) = target.prepared(context) else { return };
    let drift = prepared.samples.drift(context);
    let Some(state) = drift.feature(target.feature) else { return };
    for seen in [&mut finding.baseline, &mut finding.current] {
        seen.find_name(|id| state.current.category_name(id));
    }
}

/// Answers one caller whose tests are done, or begins to tell what a check found. False: none is done.
fn finish_next(context: Context<'_>) -> bool {
    let finished = STATE.borrow_mut(context).background.drift.take_finished();
    let Some(job) = finished else { return false };
    match job.purpose {
        // It is told of an internal error when it is let go.
        Purpose::Call { .. } if job.has_failed => {}
        Purpose::Call { caller, view, .. } if job.is_gone || job.found.is_empty() => caller.reply(|context| {
            let (code, what) =
                if job.is_gone { (Code::NoView, "dropped") } else { (Code::Err, "left without baselines") };
            let message = format!("view '{}' was {what} while it was tested", view.name);
            context.reply_error(&Error::new(code, message));
        }),
        Purpose::Call { caller, protocol, .. } => caller.reply(|context| reply(context, protocol, &job.found)),
        Purpose::Check => {
            let findings = || job.found.iter().flat_map(|found| &found.findings);
            let levels = Levels::among(findings());
            let insufficient = findings().filter(|finding| finding.outcome.is_none()).count() as u64;
            let conclusion = Conclusion { found: job.found, levels, insufficient };
            STATE.borrow_mut(context).background.drift.conclusion = Some(conclusion);
        }
    }
    true
}

fn reply(context: Context<'_>, protocol: Protocol, found: &VecDeque<Found>) {
    context.reply_array(found.iter().map(|f| f.findings.len()).sum());
    for Found { target, findings, .. } in found {
        let feature = &target.view.features()[target.feature].name;
        for finding in findings {
            context.reply_members(protocol, &finding.members(feature));
        }
    }
}

/// Starts and ends the alerts of one feature of a finished check. False: there is nothing more to tell.
fn conclude_next(context: Context<'_>) -> bool {
    let mut state = STATE.borrow_mut(context);
    let drift = &mut state.background.drift;
    let Some(conclusion) = &mut drift.conclusion else { return false };
    let (levels, insufficient) = (conclusion.levels, conclusion.insufficient);
    let Some(found) = conclusion.found.pop_front() else {
        drift.conclusion = None;
        drift.figures.checks += 1;
        drift.figures.insufficient = insufficient;
        return false;
    };
    drop(state);
    if !may_write(context) {
        // Paused, out of memory, or no primary any more: the next check will see.
        STATE.borrow_mut(context).background.drift.conclusion = None;
        return false;
    }
    let mut effects = Effects::new(context);
    let started = alerts::update(context, &found, levels, &mut effects);
    effects.replicate();
    STATE.borrow_mut(context).background.drift.figures.alerts_started += started;
    true
}

/// Every feature that has a baseline, or an alert that may have to end.
fn all_targets(context: Context<'_>) -> VecDeque<Target> {
    let mut targets = VecDeque::new();
    let versions = STATE.borrow(context).all_versions();
    for prepared in versions {
        let drift = prepared.samples.drift(context);
        for (feature, (state, definition)) in drift.features().iter().zip(prepared.view.features()).enumerate() {
            if definition.expected.is_some() || state.baseline.is_some() || state.alerts != ActiveAlerts::default() {
                targets.push_back(Target::new(&prepared, feature));
            }
        }
    }
    targets
}

unsafe extern "C" fn on_look(ctx: *mut raw::RedisModuleCtx, _data: *mut c_void) {
    // SAFETY: the context is alive during the callback.
    let context = unsafe { Context::new(ctx) };
    context.select_store_db();
    start_looking(context);
    guarded(context, || {
        let interval_ms = config::DRIFT_INTERVAL_MS.get();
        let flags = context.flags();
        let now_ms = context.now_ms();
        let is_due = {
            let mut state = STATE.borrow_mut(context);
            let drift = &mut state.background.drift;
            let elapsed_ms = now_ms - *drift.checked_at_ms.get_or_insert(now_ms);
            interval_ms > 0 && !drift.is_checking() && (elapsed_ms >= interval_ms || elapsed_ms < 0)
        };
        if is_due && !flags.is_replica() && !flags.is_loading() {
            let targets = all_targets(context);
            let mut state = STATE.borrow_mut(context);
            state.background.drift.checked_at_ms = Some(now_ms);
            state.background.drift.push(Purpose::Check, targets, Vec::new());
            drop(state);
            wake(context);
        }
    });
}

/// Begins the periodic look whether a check is due.
pub(crate) fn start_looking(context: Context<'_>) {
    let interval_ms = config::DRIFT_INTERVAL_MS.get();
    let period_ms = if interval_ms > 0 { interval_ms.min(LOOK_MS) } else { LOOK_MS };
    // SAFETY: we are on the main thread; the callback is static and takes no data.
    unsafe { api!(RedisModule_CreateTimer(context.as_ptr(), period_ms, Some(on_look), std::ptr::null_mut())) };
}
