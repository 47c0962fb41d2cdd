//! FS.DRIFT and the periodic check: the main thread copies windows out, a thread of its own compares them.
//!
//! Calls queue, checks come after calls. What is copied out at a time is bounded, in time on the main thread and in
//! number on the other.

use crate::server::alerts;
use crate::server::api::{api, Context};
use crate::server::background::{may_write, wake, Deadline, Left};
use crate::server::blocked::{BlockedCaller, CallerId};
use crate::server::command::guarded;
use crate::server::config;
use crate::server::reply::Protocol;
use crate::server::state::STATE;
use feature_store_core::drift::baseline::Baseline;
use feature_store_core::drift::current::Observed;
use feature_store_core::drift::finding::{findings, Finding, Told, SIGNIFICANCE};
use feature_store_core::drift::method::{fitting, Test};
use feature_store_core::{Code, Error};
use lazy_static::lazy_static;
use redis_module::raw;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex};

/// Features that the thread has at a time: what is copied out for it is bounded by that.
const IN_FLIGHT_MAX: usize = 8;
/// The clock is looked at this often for a check that may be due.
const LOOK_MS: i64 = 1_000;

/// What is to be tested.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) view: String,
    pub(crate) version: u32,
    pub(crate) feature: String,
}

/// A target with what was found.
pub(crate) struct Found {
    pub(crate) target: Target,
    pub(crate) findings: Vec<Finding>,
}

/// Whom the findings are for.
enum Purpose {
    Call { caller: BlockedCaller, protocol: Protocol },
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
    found: Vec<Found>,
    /// A test ended in a panic.
    has_failed: bool,
}

/// All tests that are under way.
#[derive(Default)]
pub(crate) struct DriftWork {
    jobs: VecDeque<Job>,
    last_number: u64,
    checked_at_ms: Option<i64>,
    /// Checks that were finished since the start.
    pub(crate) checks: u64,
    /// Alerts that this server started since its start.
    pub(crate) alerts_started: u64,
}

struct Request {
    job: u64,
    target: Target,
    baseline: Arc<Baseline>,
    observed: Observed,
    tests: Vec<Test>,
}

struct Response {
    job: u64,
    target: Target,
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
            for Request { job, target, baseline, observed, tests } in incoming {
                let findings = catch_unwind(AssertUnwindSafe(|| findings(&baseline, observed, &tests))).ok();
                if outgoing.send(Response { job, target, findings }).is_err() {
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
        let number = self.last_number;
        let job = Job { number, purpose, targets, tests, in_flight: 0, found: Vec::new(), has_failed: false };
        self.jobs.push_back(job);
    }

    /// The next target, of a call before that of a check.
    fn next_target(&mut self) -> Option<(u64, Target, Vec<Test>)> {
        if self.jobs.iter().map(|job| job.in_flight).sum::<usize>() >= IN_FLIGHT_MAX {
            return None;
        }
        let waiting = self.jobs.iter_mut().filter(|job| !job.targets.is_empty());
        let job = waiting.min_by_key(|job| matches!(job.purpose, Purpose::Check))?;
        let target = job.targets.pop_front()?;
        Some((job.number, target, job.tests.clone()))
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
}

/// A caller has gone away: nobody waits for its tests.
pub(crate) fn abandon(context: Context<'_>, id: CallerId) {
    let job = STATE.borrow_mut(context).background.drift.take_of(id);
    if let Some(Job { purpose: Purpose::Call { caller, .. }, .. }) = job {
        caller.abandon();
    }
}

/// Tests for a caller, who waits.
pub(crate) fn call(context: Context<'_>, targets: Vec<Target>, tests: Vec<Test>) {
    let protocol = context.protocol();
    let purpose = Purpose::Call { caller: BlockedCaller::of_one_who_may_leave(context), protocol };
    STATE.borrow_mut(context).background.drift.push(purpose, targets.into(), tests);
    wake(context);
}

/// Copies out, collects and answers until the deadline.
pub(crate) fn slice(context: Context<'_>, deadline: Deadline) -> Left {
    collect(context);
    // At least one: consumers may have used up the time.
    while submit_next(context) && !deadline.is_over() {}
    loop {
        // Answering can fire events: nothing is borrowed meanwhile.
        let finished = STATE.borrow_mut(context).background.drift.take_finished();
        let Some(job) = finished else { break };
        match job.purpose {
            Purpose::Call { caller, protocol } if job.has_failed => {
                drop((caller, protocol));
            }
            Purpose::Call { caller, protocol } => caller.reply(|context| reply(context, protocol, &job.found)),
            Purpose::Check => finish_check(context, &job.found),
        }
    }
    match STATE.borrow(context).background.drift.jobs.is_empty() {
        true => Left::Nothing,
        false => Left::Work,
    }
}

/// Gives the thread one more feature. False: there is none, or it has enough.
fn submit_next(context: Context<'_>) -> bool {
    let next = STATE.borrow_mut(context).background.drift.next_target();
    let Some((job, target, tests)) = next else { return false };
    if let Some(request) = copy_out(context, job, target, &tests) {
        if let Some(job) = STATE.borrow_mut(context).background.drift.job(job) {
            job.in_flight += 1;
        }
        THREAD.requests.send(request).expect("the thread of drift runs as long as the server");
    }
    true
}

/// `None`: the feature is gone, or has nothing to be compared with by these methods any more.
fn copy_out(context: Context<'_>, job: u64, target: Target, tests: &[Test]) -> Option<Request> {
    let prepared = STATE.borrow(context).prepared_version(&target.view, target.version)?;
    let feature = prepared.view.position(target.feature.as_bytes(), 0)?;
    let drift = prepared.samples.drift(context);
    let baseline = drift.baseline(&prepared.view, feature).ok()??;
    let tests = fitting(&baseline, tests);
    let observed = drift.observe(feature, context.now_ms())?;
    (!tests.is_empty()).then_some(Request { job, target, baseline, observed, tests })
}

/// Takes what the thread has found.
fn collect(context: Context<'_>) {
    let Ok(responses) = THREAD.responses.lock() else { return };
    while let Ok(Response { job, target, mut findings }) = responses.try_recv() {
        findings.iter_mut().flatten().for_each(|finding| find_names(context, &target, finding));
        let mut state = STATE.borrow_mut(context);
        // Jobs whose caller has left are gone.
        let Some(job) = state.background.drift.job(job) else { continue };
        job.in_flight -= 1;
        match findings {
            Some(findings) => job.found.push(Found { target, findings }),
            None => job.has_failed = true,
        }
    }
}

/// The names of categories that the baseline does not have: only the window knows them.
fn find_names(context: Context<'_>, target: &Target, finding: &mut Finding) {
    let Some(prepared) = STATE.borrow(context).prepared_version(&target.view, target.version) else { return };
    let Some(feature) = prepared.view.position(target.feature.as_bytes(), 0) else { return };
    let drift = prepared.samples.drift(context);
    let Some(state) = drift.feature(feature) else { return };
    for seen in [&mut finding.baseline, &mut finding.current] {
        seen.find_name(|id| state.current.category_name(id));
    }
}

fn reply(context: Context<'_>, protocol: Protocol, found: &[Found]) {
    if found.is_empty() {
        context.reply_error(&Error::new(Code::NoView, "what was to be tested was dropped or cleared meanwhile"));
        return;
    }
    context.reply_array(found.iter().map(|f| f.findings.len()).sum());
    for Found { target, findings } in found {
        for finding in findings {
            let members = finding.members(&target.feature, finding.is_alert(SIGNIFICANCE));
            context.reply_map(members.len());
            for (name, told) in members {
                context.reply_text(name);
                context.reply_told(protocol, &told);
            }
        }
    }
}

/// Alerts that start and end with a finished check.
fn finish_check(context: Context<'_>, found: &[Found]) {
    // Paused, out of memory, or no primary any more: the next check will see.
    if !may_write(context) {
        return;
    }
    let with_p = |finding: &&Finding| finding.outcome.is_some_and(|outcome| outcome.p_value.is_some());
    let tests = found.iter().flat_map(|f| &f.findings).filter(with_p).count();
    let started = alerts::update(context, found, SIGNIFICANCE / tests.max(1) as f64);
    let drift = &mut STATE.borrow_mut(context).background.drift;
    drift.checks += 1;
    drift.alerts_started += started;
}

/// Every feature that has a baseline.
fn all_targets(context: Context<'_>) -> VecDeque<Target> {
    let state = STATE.borrow(context);
    let mut targets = VecDeque::new();
    for prepared in state.all_versions() {
        let drift = prepared.samples.drift(context);
        for (i, feature) in prepared.view.features().iter().enumerate() {
            let has_baseline = feature.expected.is_some() || drift.feature(i).is_some_and(|f| f.baseline.is_some());
            if has_baseline {
                let (view, version) = (prepared.view.name.clone(), prepared.view.version);
                targets.push_back(Target { view, version, feature: feature.name.clone() });
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
            let is_checking = drift.jobs.iter().any(|job| matches!(job.purpose, Purpose::Check));
            let elapsed_ms = now_ms - *drift.checked_at_ms.get_or_insert(now_ms);
            interval_ms > 0 && !is_checking && (elapsed_ms >= interval_ms || elapsed_ms < 0)
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

impl Context<'_> {
    /// A member of a finding.
    pub(crate) fn reply_told(self, protocol: Protocol, told: &Told) {
        match (told, protocol) {
            (Told::Nil, _) => self.reply_nil(),
            (Told::Text(text), _) => self.reply_bytes(text),
            (Told::Number(number), Protocol::Resp3) => self.reply_double(*number),
            (Told::Number(_), Protocol::Resp2) => self.reply_bytes(&told.to_field()),
            (Told::Count(n), _) => self.reply_count(Some(*n)),
            (Told::Flag(flag), _) => self.reply_bool(*flag),
        }
    }
}
