//! A run of `train` as it is seen: its events to those who listen and to the training folder, and at its end the record.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyException, PyKeyboardInterrupt};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyTuple};
use ring::digest::{Context, SHA256};
use serde_json::{Map, Value, json};

use super::log::Log;
use super::options::{self, Kind};
use super::run::Run;
use super::{absolute, arguments, clone_of, is_replaced, path_of, plan};
use crate::dataset::{Layout, RedactedUrl};
use crate::error::{Cancelled, Error};
use crate::events::{Event, Recorder};
use crate::gpu::{self, Watched};
use crate::task::{Cancel, lock_of};
use crate::tuner::MusubiTuner;
use crate::{interpreter, interrupt};

/// Between two looks at the GPU.
const GPU_PERIOD: Duration = Duration::from_secs(2);

/// What a driver may take to say what it is. One that takes longer is in the record, not in the first event.
const DRIVER_WAIT: Duration = Duration::from_millis(500);

/// What a look at the GPU may take to end.
const WATCH_WAIT: Duration = Duration::from_secs(1);

/// A name of less would be found everywhere.
const SHORTEST_SECRET: usize = 6;

/// Of the objects that may stand in for a `Models`, a `DatasetLimits` and a `DatasetOptions`.
const MODELS: [&str; 4] = ["ae", "text_encoder", "DiT", "base_weights"];
const LIMITS: [&str; 3] = ["zip_bytes", "extracted_bytes", "entries"];
const DATASET_OPTIONS: [&str; 4] = ["captions", "default_caption", "image_extensions", "upright"];

/// What is called with each event.
#[derive(Default)]
pub struct Listeners {
    on_event: Option<Py<PyAny>>,
    /// The progress bars; whatever they do, they do not end the run.
    bars: Option<Py<PyAny>>,
}

impl Listeners {
    /// Those that `train` is given.
    ///
    /// # Errors
    /// `TypeError` for what is none, what Python raises.
    pub fn of(
        on_event: Option<Bound<'_, PyAny>>,
        progress: Option<&Bound<'_, PyAny>>,
        py: Python<'_>,
    ) -> PyResult<Self> {
        if let Some(given) = on_event.as_ref().filter(|given| !given.is_callable()) {
            return Err(arguments::wrong_type("on_event", "a callable or None", given).into());
        }
        if let Some(given) = progress.filter(|given| !given.is_instance_of::<PyBool>()) {
            return Err(arguments::wrong_type("progress", "a bool or None", given).into());
        }
        let is_wanted = progress.map_or(Ok(true), PyAnyMethods::is_truthy)?;
        let bars = if is_wanted {
            let bars = py.import("musubitraining.progress_bars")?;
            Some(bars.call_method1("of", (progress,))?)
        } else {
            None
        };
        Ok(Self {
            on_event: on_event.map(Bound::unbind),
            bars: bars.filter(|bars| !bars.is_none()).map(Bound::unbind),
        })
    }

    fn is_empty(&self) -> bool {
        self.on_event.is_none() && self.bars.is_none()
    }
}

/// What one run of `train` leaves.
pub struct Record {
    pub events: Arc<Recorder>,
    /// That called `train`, and that listeners are called on.
    thread: ThreadId,
    /// As the trainer has it.
    folder: Option<PathBuf>,
    listeners: Mutex<Listeners>,
    is_delivering: AtomicBool,
    /// What no message may have, and what stands in its place.
    secrets: Vec<(String, String)>,
    watch: Mutex<Option<Watch>>,
}

impl Record {
    /// Begins the record of what `train` is called with; a run goes without one rather than fail for it.
    ///
    /// # Errors
    /// [`Error::Cancelled`], what a signal handler raises.
    pub fn begin(
        trainer: &Bound<'_, PyAny>,
        run: &Run,
        listeners: Listeners,
        arguments: &[(&str, Bound<'_, PyAny>)],
    ) -> PyResult<Option<Arc<Self>>> {
        let py = trainer.py();
        match Self::try_begin(trainer, run, listeners, arguments) {
            Ok(record) => {
                run.set_record(Some(record.clone()));
                if let Some(folder) = record.folder.as_ref().filter(|folder| run.has(folder)) {
                    record.settle(folder);
                }
                Ok(Some(record))
            }
            Err(error) if error.is_instance_of::<PyException>(py) => {
                run.check()?;
                Log::new(py)?
                    .warning(("[pipeline] this run has no record: %s", error.value(py)))?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn try_begin(
        trainer: &Bound<'_, PyAny>,
        run: &Run,
        listeners: Listeners,
        arguments: &[(&str, Bound<'_, PyAny>)],
    ) -> PyResult<Arc<Self>> {
        let py = trainer.py();
        let events = Arc::new(Recorder::new(!listeners.is_empty()));
        let mut watch = Watch::start(trainer, &events);
        let watched = match &mut watch {
            Some(watch) => watch.began(py, run)?,
            None => None,
        };
        let photos = arguments.iter().find(|(name, _)| *name == "images_zip_url");
        let record = Arc::new(Self {
            thread: thread::current().id(),
            folder: path_of(trainer, "absolute_path_training_folder").ok(),
            listeners: Mutex::new(listeners),
            is_delivering: AtomicBool::new(false),
            secrets: photos.map_or_else(Vec::new, |(_, photos)| secrets(photos)),
            watch: Mutex::new(watch),
            events,
        });
        let started = started(trainer, arguments, watched.as_ref())?;
        record.events.say(&Event::Started(&started));
        if let Some(watch) = lock_of(&record.watch).as_mut() {
            watch.hold = None;
        }
        Ok(record)
    }

    /// The training folder is there, and the run's own.
    pub fn settle(&self, training_folder: &Path) {
        if self.folder.as_deref() == Some(training_folder) && training_folder.is_dir() {
            self.events.settle(training_folder);
        }
    }

    /// A WARNING of the log.
    pub fn warn(&self, message: &str) {
        self.events
            .say(&Event::Warning(&self.without_secrets(message)));
    }

    /// Hands what has happened to those who listen. On any thread but the one that called `train`, this does nothing.
    ///
    /// # Errors
    /// What `on_event` raises, which is not called again.
    pub fn deliver(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        if thread::current().id() != self.thread || self.is_delivering.swap(true, Ordering::Acquire)
        {
            return Ok(());
        }
        let delivered = self.deliver_each(py);
        self.is_delivering.store(false, Ordering::Release);
        delivered?;
        match self.events.trouble() {
            Some(trouble) => Log::recorded(py, self)?.warning(("[pipeline] %s", trouble)),
            None => Ok(()),
        }
    }

    fn deliver_each(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        while let Some(line) = self.events.next_waiting() {
            let event = py
                .import("musubitraining.run_events")?
                .call_method1("parse", (line,))?;
            let listeners = {
                let of =
                    |listener: &Option<Py<PyAny>>| listener.as_ref().map(|one| one.clone_ref(py));
                let listeners = lock_of(&self.listeners);
                (of(&listeners.bars), of(&listeners.on_event))
            };
            if let Some(bars) = listeners.0
                && let Err(error) = bars.call1(py, (&event,))
            {
                // Ctrl-C, say, which is not the bars': they are to show how the run has ended.
                if !error.is_instance_of::<PyException>(py) {
                    return Err(error);
                }
                lock_of(&self.listeners).bars = None;
                Log::recorded(py, self)?.warning((
                    "[pipeline] no progress bars from here on: %s",
                    error.value(py),
                ))?;
            }
            if let Some(on_event) = listeners.1
                && let Err(error) = on_event.call1(py, (&event,))
            {
                lock_of(&self.listeners).on_event = None;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Ends the record of a run that has ended so, and returns what is to be returned by `train`.
    ///
    /// # Errors
    /// That of the outcome; where that is none, what ends the run at the last moment: a signal, or what `on_event` raises.
    pub fn end<'py>(
        self: Arc<Self>,
        trainer: &Bound<'py, PyAny>,
        run: &Run,
        outputs: &[(&str, PathBuf)],
        outcome: PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = trainer.py();
        let hashed = match &outcome {
            Ok(_) => interrupt::run_quietly(py, run, |task| described(outputs, &task.cancel)),
            Err(_) => Ok(Vec::new()),
        };
        let outcome = hashed.and_then(|outputs| Ok((outcome?, outputs)));
        let watched = lock_of(&self.watch).take().and_then(|watch| watch.end(py));
        let step = self.events.end_steps();
        let ended = match &outcome {
            Ok((_, outputs)) => {
                let last = Event::Done { outputs };
                self.close(trainer, &last, watched.as_ref())
            }
            Err(error) => {
                let told = Told::of(error, py);
                let reason = told.reason.map(|reason| self.without_secrets(&reason));
                let last = Event::Error {
                    is_cancelled: told.is_cancelled,
                    class: &told.class,
                    message: &self.without_secrets(&told.message),
                    reason: reason.as_deref(),
                    step: step.as_deref(),
                };
                self.close(trainer, &last, watched.as_ref())
            }
        };
        run.set_record(None);
        match (outcome, ended) {
            (Ok((model, _)), Ok(())) => Ok(model),
            (Ok(_), Err(error)) | (Err(error), Ok(())) => Err(error),
            (Err(error), Err(other)) => {
                // The run has its own reason to end.
                let log = Log::new(py).and_then(|log| {
                    log.warning((
                        "[pipeline] on_event raised at the end of the run: %s",
                        other.value(py),
                    ))
                });
                drop(log);
                Err(error)
            }
        }
    }

    /// The last event, behind the record: whoever hears of the end finds it.
    fn close(
        self: &Arc<Self>,
        trainer: &Bound<'_, PyAny>,
        last: &Event<'_>,
        watched: Option<&Watched>,
    ) -> PyResult<()> {
        let py = trainer.py();
        let delivered = self.deliver(py);
        let kept = match self.keep(trainer, last, watched) {
            Err(error) if error.is_instance_of::<PyException>(py) => {
                if self.events.has_told_trouble() {
                    Ok(())
                } else {
                    Log::recorded(py, self)?.warning((
                        "[pipeline] the record of this run cannot be written: %s",
                        error.value(py),
                    ))
                }
            }
            kept => kept,
        };
        self.events.close(last);
        delivered.and(kept).and(self.deliver(py))
    }

    /// Makes `last_run`, and writes it into the training folder.
    fn keep(
        &self,
        trainer: &Bound<'_, PyAny>,
        last: &Event<'_>,
        watched: Option<&Watched>,
    ) -> PyResult<()> {
        let py = trainer.py();
        let folder = self.folder.as_deref().map(absolute).transpose()?;
        let versions = PyDict::new(py);
        if let Some(watched) = watched {
            versions.set_item("driver", &watched.driver)?;
            versions.set_item("gpu", &watched.gpu)?;
        }
        let lines = self.events.lines_with(last);
        let run = py.import("musubitraining.run_record")?.call_method1(
            "of_lines",
            (lines, folder.map(PathBuf::into_os_string), versions),
        )?;
        // What a subclass keeps under this name for itself is left alone.
        let theirs = trainer.getattr("last_run").ok();
        if theirs.is_none_or(|found| found.is_none() || found.get_type().is(run.get_type())) {
            drop(trainer.setattr("last_run", &run));
        }
        if self.events.is_settled() {
            run.call_method0("save")?;
        }
        Ok(())
    }

    fn without_secrets(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (secret, shown) in &self.secrets {
            if text.contains(secret) {
                text = text.replace(secret, shown);
            }
        }
        text
    }
}

/// A step from its begin to its end, of which nothing more is known than what a method that does it returns.
pub struct Around<'a> {
    run: &'a Run,
    record: Option<Arc<Record>>,
    step: &'a str,
    began: Instant,
}

impl<'a> Around<'a> {
    /// # Errors
    /// What `on_event` raises.
    pub fn begin(run: &'a Run, py: Python<'_>, step: &'a str, argv: &[OsString]) -> PyResult<Self> {
        let record = run.record();
        if let Some(record) = &record {
            let argv = argv.iter().map(|word| word.to_string_lossy().into_owned());
            record.events.begin_around(step, &argv.collect::<Vec<_>>());
            record.deliver(py)?;
        }
        Ok(Self {
            run,
            record,
            step,
            began: Instant::now(),
        })
    }

    /// # Errors
    /// What `on_event` raises.
    pub fn end(self, py: Python<'_>) -> PyResult<()> {
        self.end_with(py, &[])
    }

    /// [`Self::end`] of the step that makes the dataset.
    ///
    /// # Errors
    /// As [`Self::end`], and what a signal handler raises.
    pub fn end_dataset(self, py: Python<'_>) -> PyResult<()> {
        let folder = self
            .record
            .as_ref()
            .and_then(|record| record.folder.clone());
        let (Some(record), Some(folder)) = (&self.record, folder) else {
            return self.end(py);
        };
        record.settle(&folder);
        let took = self.began.elapsed();
        let photos = interrupt::run_quietly(py, self.run, |_| Ok(photos(&folder, took)))?;
        self.end_with(py, &photos)
    }

    fn end_with(self, py: Python<'_>, photos: &[Value]) -> PyResult<()> {
        match self.record {
            Some(record) => {
                record
                    .events
                    .end_step(self.step, Some(self.began.elapsed()), None, photos);
                record.deliver(py)
            }
            None => Ok(()),
        }
    }
}

/// An exception, in words.
struct Told {
    is_cancelled: bool,
    class: String,
    message: String,
    reason: Option<String>,
}

impl Told {
    fn of(error: &PyErr, py: Python<'_>) -> Self {
        let value = error.value(py);
        let class = error.get_type(py).name();
        let class = class.map_or_else(|_| "Exception".to_owned(), |name| name.to_string());
        let reason = value.getattr("reason").ok();
        Self {
            is_cancelled: error.is_instance_of::<Cancelled>(py)
                || error.is_instance_of::<PyKeyboardInterrupt>(py),
            message: value
                .str()
                .map_or_else(|_| class.clone(), |text| text.to_string()),
            reason: reason.and_then(|reason| reason.extract().ok()),
            class,
        }
    }
}

/// A thread that looks at the GPU while a run lasts.
struct Watch {
    cancel: Cancel,
    watched: Option<Watched>,
    began: Receiver<Watched>,
    /// Until it is dropped, nothing is read.
    hold: Option<Sender<()>>,
    over: Option<Receiver<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Watch {
    /// `None` where there is no thread to be had.
    fn start(trainer: &Bound<'_, PyAny>, events: &Arc<Recorder>) -> Option<Self> {
        let launch = options::of(trainer, Kind::Launch).ok().flatten();
        let devices = match plan::gpu_ids(launch.as_ref()) {
            Some(ids) if ids != "all" => Some(ids),
            _ => std::env::var("CUDA_VISIBLE_DEVICES").ok(),
        };
        let in_bus_order = gpu::is_bus_order(std::env::var("CUDA_DEVICE_ORDER").ok().as_deref());
        let cancel = Cancel::default();
        let (tell, began) = channel();
        let (hold, go) = channel::<()>();
        let (end, over) = channel();
        let (wanted, events) = (cancel.clone(), events.clone());
        let watch = move || {
            gpu::watch(
                devices.as_deref(),
                in_bus_order,
                GPU_PERIOD,
                &wanted,
                |watched| {
                    drop(tell.send(watched));
                    let _ = go.recv();
                },
                |reading| {
                    events.say(&Event::Gpu {
                        used_bytes: reading.used_bytes,
                        total_bytes: reading.total_bytes,
                        utilisation_percent: reading.utilisation_percent,
                    });
                },
            );
            drop(end);
        };
        let thread = thread::Builder::new().name("musubitraining-gpu".to_owned());
        thread.spawn(watch).ok()?;
        Some(Self {
            cancel,
            watched: None,
            began,
            hold: Some(hold),
            over: Some(over),
        })
    }

    /// What is watched, if that is known before long.
    fn began(&mut self, py: Python<'_>, run: &Run) -> PyResult<Option<Watched>> {
        let deadline = Instant::now() + DRIVER_WAIT;
        loop {
            match self.began.try_recv() {
                Ok(watched) => self.watched = Some(watched),
                Err(TryRecvError::Empty) if Instant::now() < deadline => {
                    py.detach(|| thread::sleep(Duration::from_millis(1)));
                    py.check_signals()?;
                    run.check()?;
                    continue;
                }
                Err(_) => {}
            }
            return Ok(self.watched.clone());
        }
    }

    /// Ends the thread; one that a driver holds up is left to itself.
    fn end(mut self, py: Python<'_>) -> Option<Watched> {
        self.cancel.cancel();
        if let Some(over) = self.over.take() {
            py.detach(move || {
                let _ = over.recv_timeout(WATCH_WAIT);
            });
        }
        let late = self.began.try_recv().ok();
        self.watched.take().or(late)
    }
}

/// The members of the first event.
fn started(
    trainer: &Bound<'_, PyAny>,
    arguments: &[(&str, Bound<'_, PyAny>)],
    watched: Option<&Watched>,
) -> PyResult<Map<String, Value>> {
    let py = trainer.py();
    let mut given = Map::new();
    for (name, value) in arguments {
        let value = match *name {
            "images_zip_url" => photos_shown(value),
            _ => plain(value),
        };
        given.insert((*name).to_owned(), value);
    }
    for name in ["absolute_path_models", "absolute_path_musubi_tuner"] {
        given.insert(name.to_owned(), folder_shown(trainer, name));
    }
    for (name, fields) in [
        ("models_for_training", &MODELS[..]),
        ("dataset_limits", &LIMITS[..]),
    ] {
        if let Ok(found) = trainer.getattr(name) {
            given.insert(name.to_owned(), of_fields(&found, fields));
        }
    }
    let mut members = Map::new();
    let mut set = |name: &str, value: Value| {
        // What is not known is left out, as in `run_events.line`.
        if !value.is_null() {
            members.insert(name.to_owned(), value);
        }
    };
    set("version", json!(1));
    set("versions", versions(trainer, watched));
    set("arguments", Value::Object(given));
    for kind in Kind::ALL {
        if let Some(options) = options::of(trainer, kind)? {
            set(kind.name(), options_shown(&options));
        }
    }
    // Whoever trains in another way may have a rate of their own.
    if !is_replaced(trainer, "_launch_training")? {
        set("learning_rate", json!(options::learning_rate(trainer)));
    }
    set(
        "folders",
        json!({
            "training": folder_shown(trainer, "absolute_path_training_folder"),
            "output": folder_shown(trainer, "absolute_path_output"),
        }),
    );
    py.check_signals()?;
    Ok(members)
}

fn folder_shown(trainer: &Bound<'_, PyAny>, attribute: &str) -> Value {
    let folder = path_of(trainer, attribute).and_then(|path| absolute(&path));
    folder.map_or(Value::Null, |path| json!(path.to_string_lossy()))
}

fn versions(trainer: &Bound<'_, PyAny>, watched: Option<&Watched>) -> Value {
    let py = trainer.py();
    let clone = clone_of(trainer).ok();
    let python = py.version_info();
    let mut versions = Map::new();
    for (name, version) in [
        ("musubitraining", Some(env!("CARGO_PKG_VERSION").to_owned())),
        (
            "musubi_tuner",
            clone.as_ref().and_then(MusubiTuner::version),
        ),
        (
            "musubi_tuner_commit",
            clone.as_ref().and_then(MusubiTuner::commit),
        ),
        (
            "python",
            Some(format!(
                "{}.{}.{}",
                python.major, python.minor, python.patch
            )),
        ),
        ("torch", interpreter::installed_version(py, "torch")),
        (
            "accelerate",
            interpreter::installed_version(py, "accelerate"),
        ),
        ("driver", watched.and_then(|watched| watched.driver.clone())),
        ("gpu", watched.map(|watched| watched.gpu.clone())),
    ] {
        if let Some(version) = version {
            versions.insert(name.to_owned(), json!(version));
        }
    }
    Value::Object(versions)
}

/// Options by their names. A subclass may keep something of its own in their place.
fn options_shown(options: &Bound<'_, PyAny>) -> Value {
    let names = || -> PyResult<Vec<String>> {
        let dataclasses = options.py().import("dataclasses")?;
        let fields = dataclasses.call_method1("fields", (options,))?;
        let name = |field: PyResult<Bound<'_, PyAny>>| field?.getattr("name")?.extract();
        fields.try_iter()?.map(name).collect()
    };
    match names() {
        Ok(names) => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            of_fields(options, &names)
        }
        Err(_) => of_fields(options, &DATASET_OPTIONS),
    }
}

fn of_fields(object: &Bound<'_, PyAny>, names: &[&str]) -> Value {
    let fields = names.iter().filter_map(|name| {
        let value = object.getattr(*name).ok()?;
        Some(((*name).to_owned(), plain(&value)))
    });
    Value::Object(fields.collect())
}

/// A value as JSON has it; what JSON does not have is text.
fn plain(value: &Bound<'_, PyAny>) -> Value {
    if value.is_none() {
        return Value::Null;
    }
    if let Ok(value) = value.cast::<PyBool>() {
        return json!(value.is_true());
    }
    if value.is_instance_of::<PyInt>()
        && let Ok(number) = value.extract::<i64>()
    {
        return json!(number);
    }
    if value.is_instance_of::<PyFloat>()
        && let Ok(number) = value.extract::<f64>()
    {
        return json!(number);
    }
    // Of options: words, numbers and paths.
    if (value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>())
        && let Ok(items) = value.try_iter()
    {
        let word = |item: Bound<'_, PyAny>| {
            if item.is_instance_of::<PyList>() || item.is_instance_of::<PyTuple>() {
                return text(&item);
            }
            plain(&item)
        };
        return items.flatten().map(word).collect();
    }
    text(value)
}

fn text(value: &Bound<'_, PyAny>) -> Value {
    if let Ok(path) = value.extract::<OsString>() {
        return json!(path.to_string_lossy());
    }
    value
        .str()
        .map_or(Value::Null, |text| json!(text.to_string_lossy()))
}

/// Where the photos are: a URL without its secrets, a path from the root on.
fn photos_shown(photos: &Bound<'_, PyAny>) -> Value {
    let Ok(text) = photos.extract::<OsString>() else {
        return plain(photos);
    };
    let text = text.to_string_lossy().into_owned();
    if let Ok(url) = RedactedUrl::parse(&text) {
        return json!(url.to_string());
    }
    if text.contains("://") {
        let shown = text.split(['?', '#']).next().unwrap_or_default();
        let (scheme, rest) = shown.split_once("://").unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let host = authority.rsplit('@').next().unwrap_or_default();
        return json!(format!("{scheme}://{host}{path}"));
    }
    let path = absolute(Path::new(&text));
    path.map_or(Value::Null, |path| json!(path.to_string_lossy()))
}

/// What of the photos' URL is for nobody else, and what is written in its place.
fn secrets(photos: &Bound<'_, PyAny>) -> Vec<(String, String)> {
    let Ok(text) = photos.extract::<String>() else {
        return Vec::new();
    };
    let Ok(url) = RedactedUrl::parse(&text) else {
        return Vec::new();
    };
    let query = text.split_once('?').map(|(_, query)| query.to_owned());
    let parsed = url.url.query().map(str::to_owned);
    let password = url.url.password().map(str::to_owned);
    let mut secrets = Vec::new();
    if text.trim() != url.to_string() {
        secrets.push((text.trim().to_owned(), url.to_string()));
    }
    for secret in [query, parsed, password].into_iter().flatten() {
        if secret.len() >= SHORTEST_SECRET {
            secrets.push((secret, "[...]".to_owned()));
        }
    }
    secrets
}

/// What became of each photo, if that was written by the step that took so long.
fn photos(training_folder: &Path, took: Duration) -> Vec<Value> {
    let layout = Layout::new(training_folder);
    let read = || -> Option<Value> {
        let path = layout.photos_json();
        let age = fs::metadata(&path)
            .ok()?
            .modified()
            .ok()?
            .elapsed()
            .unwrap_or_default();
        // The clocks of file systems are coarse.
        if age > took + Duration::from_secs(2) {
            return None;
        }
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    };
    let Some(Value::Array(mut photos)) =
        read().and_then(|mut found| Some(found.get_mut("photos")?.take()))
    else {
        return Vec::new();
    };
    for photo in &mut photos {
        let Some(members) = photo.as_object_mut() else {
            continue;
        };
        let Some(name) = members.get("file").and_then(Value::as_str) else {
            continue;
        };
        let path = layout.images().join(name);
        let bytes = fs::metadata(&path).ok().map(|found| found.len());
        let caption = fs::read_to_string(path.with_extension("txt")).ok();
        members.insert("bytes".to_owned(), json!(bytes));
        members.insert("caption".to_owned(), json!(caption));
        members.retain(|_, value| !value.is_null());
    }
    photos
}

/// The files that are there.
fn described(outputs: &[(&str, PathBuf)], cancel: &Cancel) -> Result<Vec<Value>, Error> {
    let mut described = Vec::new();
    for (kind, path) in outputs {
        if let Some((bytes, sha256)) = hashed(path, cancel)? {
            let path = path.to_string_lossy();
            described.push(json!({"path": path, "kind": kind, "bytes": bytes, "sha256": sha256}));
        }
    }
    Ok(described)
}

/// The size and the hash of a file; `None` for what cannot be read.
fn hashed(path: &Path, cancel: &Cancel) -> Result<Option<(u64, String)>, Error> {
    let Ok(mut file) = File::open(path) else {
        return Ok(None);
    };
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        cancel.check()?;
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return Ok(None),
        };
        context.update(&buffer[..read]);
        bytes += read as u64;
    }
    let digest = context.finish();
    let digits = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
    Ok(Some((bytes, digits.collect())))
}

/// Where the run of `trainer` is, or was when it ended.
///
/// # Errors
/// What Python raises.
pub fn status<'py>(trainer: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = trainer.py();
    let class = py
        .import("musubitraining.run_status")?
        .getattr("RunStatus")?;
    let record = Run::under_way(trainer).and_then(|run| run.record());
    let Some(record) = record.filter(|record| !record.events.is_closed()) else {
        let last = trainer.getattr("last_run").ok();
        return class.call_method1("_after", (last,));
    };
    let status = record.events.status();
    let members = PyDict::new(py);
    members.set_item("outcome", "running")?;
    members.set_item("step", status.step)?;
    members.set_item("done", status.done)?;
    members.set_item("total", status.total)?;
    members.set_item("average_loss", status.average_loss)?;
    members.set_item("seconds_left", status.seconds_left)?;
    members.set_item("seconds", record.events.elapsed().as_secs_f64())?;
    class.call((), Some(&members))
}
