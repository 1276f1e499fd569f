//! `MusubiTraining.plan`: what a run of `train` will meet, asked of the disk, the interpreter, the GPU and the servers at
//! the same time; nothing is changed.

use std::ffi::OsString;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyDict, PyList, PyTuple};

use super::arguments::{self, Given};
use super::checks::{self, Step};
use super::options::{self, Kind};
use super::run::Run;
use super::{
    MAX_TRAIN_STEPS, OUTPUT_NAME, RENAMED_ADAPTER, SEED, absolute, clone_of, converted_path,
    dataset_limits, dataset_options, netrc, path_of, steps_to_check, weights_of, written_toml,
};
use crate::cgroup::{self, MemoryCgroup};
use crate::config;
use crate::dataset::{self, Answer, DatasetLimits, Layout, RedactedUrl};
use crate::disk;
use crate::error::Error;
use crate::plan::clone::Project;
use crate::plan::memory::{Dit, Need, Room};
use crate::plan::packages::Installed;
use crate::plan::tokenizer::Found;
use crate::plan::weights::WeightFile;
use crate::plan::{self, Check, Question, Settings, Verdict};
use crate::process::{self, Command};
use crate::task::{Cancel, within};
use crate::tuner::{self, MusubiTuner, Script, Training, WeightFiles};
use crate::weights::kind::Role;
use crate::{gpu, interpreter, interrupt};

/// A plan takes less than a second, whatever the servers do.
const SERVER_LIMIT: Duration = Duration::from_millis(800);

/// A driver that has to wake its GPUs takes seconds.
const DRIVER_LIMIT: Duration = Duration::from_secs(10);

/// Of an interpreter, which may be no interpreter at all.
const LONGEST_ANSWER_BYTES: usize = 1 << 20;
const TOLD_LETTERS: usize = 200;

/// What photos and their caches may take, where the size of their zip is not known.
const DATASET_BYTES: u64 = 500_000_000;

/// Say what a run with these arguments will meet, before it starts: paths, weights, packages, the tokenizer, the GPU,
/// memory, disks, and what the server says of the zip.
///
/// Nothing is deleted, created or downloaded, and nothing of the tuner's is imported. The arguments are those of `train`,
/// and each may be left out. It takes less than a second, if the disks answer.
///
/// Args:
///     dataset_toml_content (str | None): as for `train`.
///     images_zip_url (str | os.PathLike[str] | None): as for `train`; a server is asked for size and type only, of what is
///         here the names are read.
///     trigger_word (str | None): as for `train`.
///     use_pre_cache, convert_for_comfyui, output_name, max_train_steps, seed, warm_start, native_convert, options,
///         launch_options, dataset_options: as for `train`.
///
/// Returns:
///     Plan: every check with its verdict, what was found, what was expected and the mend; and each step's command.
///
/// Raises:
///     TypeError: options are of another class.
///     Cancelled: `cancel()` was called.
#[pyfunction(name = "plan")]
#[pyo3(
    signature = (
        slf, dataset_toml_content=None, images_zip_url=None, trigger_word=None, *, use_pre_cache=Given(None),
        convert_for_comfyui=Given(None), output_name=Given(None), max_train_steps=Given(None), seed=Given(None),
        warm_start=false, native_convert=false, options=None, launch_options=None, dataset_options=None
    ),
    text_signature = "(self, dataset_toml_content=None, images_zip_url=None, trigger_word=None, *, \
                      use_pre_cache=True, convert_for_comfyui=True, output_name='output_lora_model', \
                      max_train_steps=2000, seed=42, warm_start=False, native_convert=False, options=None, \
                      launch_options=None, dataset_options=None)"
)]
#[expect(clippy::too_many_arguments, reason = "those of train")]
pub fn make<'py>(
    slf: &Bound<'py, PyAny>,
    dataset_toml_content: Option<&Bound<'py, PyAny>>,
    images_zip_url: Option<&Bound<'py, PyAny>>,
    trigger_word: Option<&Bound<'py, PyAny>>,
    use_pre_cache: Given<'py>,
    convert_for_comfyui: Given<'py>,
    output_name: Given<'py>,
    max_train_steps: Given<'py>,
    seed: Given<'py>,
    warm_start: bool,
    native_convert: bool,
    options: Option<Bound<'py, PyAny>>,
    launch_options: Option<Bound<'py, PyAny>>,
    dataset_options: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = slf.py();
    let run = Run::of(slf)?;
    let trainer = with_options(slf, &run, [options, launch_options, dataset_options])?;
    let use_pre_cache = use_pre_cache.or(py, true)?.is_truthy()?;
    let converts = convert_for_comfyui.or(py, true)?.is_truthy()?;
    let mut planned = Planned {
        steps: steps_to_check(&trainer, use_pre_cache, converts)?,
        trainer: &trainer,
        checks: Vec::new(),
        runs_converter: converts && !native_convert && !warm_start,
    };
    let arguments = planned.arguments(
        &output_name.or(py, OUTPUT_NAME)?,
        &max_train_steps.or(py, MAX_TRAIN_STEPS)?,
        &seed.or(py, SEED)?,
    )?;
    planned.options()?;
    let toml_text = planned.dataset(dataset_toml_content, trigger_word)?;
    let photos = planned.photos(images_zip_url)?;
    let asked = planned.asked(&arguments, toml_text.as_deref(), photos)?;
    let (checks, is_renamed) =
        interrupt::run_quietly(py, run.cancel(), |task| asked.check(&task.cancel))?;
    planned.checks.extend(checks);
    let commands = planned.commands(&asked, &arguments, is_renamed)?;
    planned.to_python(commands)
}

/// A trainer that has these options, else those of the run that is under way, else its own; the same one where none are
/// given.
fn with_options<'py>(
    trainer: &Bound<'py, PyAny>,
    run: &Run,
    given: options::Given<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    if given.iter().all(Option::is_none) {
        return Ok(trainer.clone());
    }
    let py = trainer.py();
    let mut given = options::checked(given)?;
    for (kind, options) in Kind::ALL.into_iter().zip(&mut given) {
        *options = options.take().or_else(|| run.options(py, kind));
    }
    let twin = py.import("copy")?.call_method1("copy", (trainer,))?;
    options::set(&twin, given)?;
    Ok(twin)
}

/// What of a trainer's options decides checks.
///
/// # Errors
/// What Python raises.
pub fn settings_of(trainer: &Bound<'_, PyAny>) -> PyResult<Settings> {
    let training = options::given(trainer, Kind::Training)?;
    let launch = options::given(trainer, Kind::Launch)?;
    let (training, launch) = (training.as_ref(), launch.as_ref());
    let usual = Settings::default();
    Ok(Settings {
        network_dim: value(training, "network_dim").unwrap_or(usual.network_dim),
        optimizer_type: value(training, "optimizer_type").unwrap_or(usual.optimizer_type),
        attention: value(training, "attention").unwrap_or(usual.attention),
        mixed_precision: value(training, "mixed_precision").unwrap_or(usual.mixed_precision),
        gradient_checkpointing: value(training, "gradient_checkpointing")
            .unwrap_or(usual.gradient_checkpointing),
        fp8_base: value(training, "fp8_base").unwrap_or(usual.fp8_base),
        fp8_llm: value(training, "fp8_llm").unwrap_or(usual.fp8_llm),
        blocks_to_swap: value(training, "blocks_to_swap").unwrap_or(usual.blocks_to_swap),
        max_train_steps: usual.max_train_steps,
        save_every_n_steps: value(training, "save_every_n_steps"),
        num_processes: value(launch, "num_processes"),
        gpu_ids: gpu_ids(launch),
        config_file: value(launch, "config_file"),
    })
}

/// Those that the launcher is told of, as it is told.
pub fn gpu_ids(launch: Option<&Bound<'_, PyAny>>) -> Option<String> {
    value(launch, "gpu_ids").or_else(|| {
        let ids: Vec<u32> = value(launch, "gpu_ids")?;
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        Some(ids.join(","))
    })
}

/// The value of an option that is there and not None.
fn value<T: for<'a, 'py> FromPyObject<'a, 'py>>(
    options: Option<&Bound<'_, PyAny>>,
    name: &str,
) -> Option<T> {
    options?.getattr(name).ok()?.extract().ok()
}

struct Planned<'a, 'py> {
    trainer: &'a Bound<'py, PyAny>,
    checks: Vec<Check>,
    steps: Vec<Step>,
    /// The clone's script, not this library's own.
    runs_converter: bool,
}

/// The photos, as far as they are to be asked for.
struct Photos {
    place: Place,
    options: dataset::Options,
    limits: DatasetLimits,
}

enum Place {
    Server(RedactedUrl),
    Here(arguments::Photos),
    /// Of the dataset that is there.
    Dataset(PathBuf),
}

impl<'py> Planned<'_, 'py> {
    fn has(&self, step: Step) -> bool {
        self.steps.contains(&step)
    }

    fn py(&self) -> Python<'py> {
        self.trainer.py()
    }

    fn words(&self, error: &PyErr) -> String {
        error.value(self.py()).to_string()
    }

    /// What `train` refuses is a check; a usable value goes into the commands.
    fn arguments(
        &mut self,
        output_name: &Bound<'_, PyAny>,
        max_train_steps: &Bound<'_, PyAny>,
        seed: &Bound<'_, PyAny>,
    ) -> PyResult<Training> {
        let output_folder = absolute(&path_of(self.trainer, "absolute_path_output")?)?;
        let mut wrong = Vec::new();
        let mut usable = |value: PyResult<String>, otherwise: String| {
            value.unwrap_or_else(|error| {
                wrong.push(error);
                otherwise
            })
        };
        let training = Training {
            output_name: usable(arguments::output_name(output_name), OUTPUT_NAME.to_owned()),
            max_train_steps: usable(
                arguments::max_train_steps(max_train_steps),
                MAX_TRAIN_STEPS.to_string(),
            ),
            seed: usable(arguments::seed(seed), SEED.to_string()),
            output_folder,
        };
        if self.has(Step::LaunchTraining) {
            let question = || Question::new("arguments", "what train takes");
            if wrong.is_empty() {
                let found = format!(
                    "output_name={:?}, max_train_steps={}, seed={}",
                    training.output_name, training.max_train_steps, training.seed
                );
                self.checks.push(question().ok(found));
            }
            for error in wrong {
                let found = self.words(&error);
                self.checks
                    .push(question().error(found, "pass one that is expected"));
            }
        }
        Ok(training)
    }

    /// Whether they are options, the files that they name exist, and the clone takes them.
    fn options(&mut self) -> PyResult<()> {
        let clone = clone_of(self.trainer)?;
        let scripts = [
            (Step::PreCache, Script::CacheTextEncoderOutputs),
            (Step::LaunchTraining, Script::Train),
        ];
        let question = || Question::new("options", "what this clone's scripts take");
        let mut found = Vec::new();
        for (_, script) in scripts.into_iter().filter(|(step, _)| self.has(*step)) {
            match options::check(self.trainer, &clone, script) {
                Ok(remarks) => found.extend(
                    remarks
                        .into_iter()
                        .map(|remark| question().warning(remark, "see that it is what is meant")),
                ),
                Err(error) => {
                    let mend = "change the options, or use a Musubi Tuner that takes them";
                    found.push(question().error(self.words(&error), mend));
                }
            }
        }
        // A file that is missing is so for both.
        found.dedup();
        if found.is_empty() {
            found.push(question().ok("nothing that they refuse"));
        }
        self.checks.extend(found);
        Ok(())
    }

    /// The dataset's TOML and the trigger word, as far as they are given.
    fn dataset(
        &mut self,
        toml_content: Option<&Bound<'_, PyAny>>,
        trigger_word: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<String>> {
        let folder = path_of(self.trainer, "absolute_path_training_folder")?;
        if !self.has(Step::PrepareDataset) {
            return Ok(None);
        }
        if let Some(word) = trigger_word {
            let question = || {
                Question::new(
                    "trigger word",
                    "some words that the text encoder reads whole",
                )
            };
            match arguments::text("trigger_word", word) {
                Err(error) => {
                    let found = self.words(&error);
                    self.checks.push(question().error(found, "pass a str"));
                }
                Ok(word) => {
                    let warnings = dataset::caption_warnings(&word);
                    if warnings.is_empty() {
                        self.checks.push(question().ok(format!("{word:?}")));
                    }
                    let odd = |warning| question().warning(warning, "pass another one");
                    self.checks.extend(warnings.into_iter().map(odd));
                }
            }
        }
        let question = || {
            Question::new(
                "dataset.toml",
                "a dataset that Musubi Tuner takes, of the photos that will be there",
            )
        };
        let text = match toml_content.filter(|content| !content.is_none()) {
            None => written_toml::usual(&folder),
            Some(content) => arguments::text("dataset_toml_content", content),
        };
        let text = match text {
            Ok(text) => Some(text),
            Err(error) => {
                let found = self.words(&error);
                let mend = "choose another training folder, or pass a dataset's TOML";
                self.checks.push(question().error(found, mend));
                None
            }
        };
        let config = match text.as_deref().map(config::parse) {
            None => None,
            Some(Ok(config)) => Some(config),
            Some(Err(error)) => {
                let mend = "fix the TOML (quotes, brackets) where it says";
                self.checks.push(question().error(error.to_string(), mend));
                None
            }
        };
        if let Err(error) = checks::cache_folders(config.as_ref(), &folder) {
            let mend = "choose a folder without '[', '*' and '?' in its path";
            let question = Question::new("glob characters", "none in the path of a cache folder");
            self.checks.push(question.error(error.to_string(), mend));
        }
        if let Some(config) = &config {
            let findings = config.warnings(&absolute(&Layout::new(&folder).images())?);
            if findings.is_empty() {
                self.checks
                    .push(question().ok("nothing that it would stumble on"));
            }
            self.checks.extend(findings.iter().map(|finding| {
                // "dataset.toml, line 3: what: mend"
                let (line, rest) = finding.split_once(": ").unwrap_or(("", finding));
                let (found, mend) = rest.split_once(": ").unwrap_or((rest, "change this line"));
                question().error(format!("{line}: {found}"), mend)
            }));
        }
        Ok(text)
    }

    fn photos(&mut self, given: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Photos>> {
        if !self.has(Step::PrepareDataset) {
            return Ok(None);
        }
        let Some(given) = given.filter(|given| !given.is_none()) else {
            return self.photos_in_place();
        };
        let place = match arguments::Photos::of(given) {
            Ok(place) => place,
            Err(error) => {
                let question = Question::new(
                    "photos",
                    "the address or path of a zip, or the path of a folder",
                );
                let found = self.words(&error);
                self.checks
                    .push(question.error(found, "pass a str or a path"));
                return Ok(None);
            }
        };
        let url = match &place {
            arguments::Photos::Text(text) => RedactedUrl::parse(text).ok().map(|_| text.clone()),
            arguments::Photos::Path(_) => None,
        };
        Ok(Some(Photos {
            place: match url {
                Some(url) => Place::Server(RedactedUrl::parse(&netrc::with_credentials(
                    self.py(),
                    url,
                ))?),
                None => Place::Here(place),
            },
            options: dataset_options::of(self.trainer)?,
            limits: dataset_limits::of(self.trainer)?,
        }))
    }

    /// Those of the last run, which the next one replaces.
    fn photos_in_place(&self) -> PyResult<Option<Photos>> {
        let images = Layout::new(&path_of(self.trainer, "absolute_path_training_folder")?).images();
        if !images.is_dir() {
            return Ok(None);
        }
        Ok(Some(Photos {
            place: Place::Dataset(images),
            options: dataset_options::of(self.trainer)?,
            limits: dataset_limits::of(self.trainer)?,
        }))
    }

    /// What the checks off the interpreter are asked of.
    fn asked(
        &self,
        arguments: &Training,
        toml_text: Option<&str>,
        photos: Option<Photos>,
    ) -> PyResult<Asked> {
        let py = self.py();
        let settings = Settings {
            max_train_steps: arguments.max_train_steps.parse().unwrap_or(u64::MAX),
            ..settings_of(self.trainer)?
        };
        let clone = clone_of(self.trainer)?;
        let folder = |attribute| absolute(&path_of(self.trainer, attribute)?);
        let weights = |role: Role| -> PyResult<WeightFile> {
            Ok(WeightFile {
                role,
                path: absolute(&weights_of(self.trainer, role.field())?)?,
            })
        };
        let mut roles = Vec::new();
        if self.has(Step::PreCache) || self.has(Step::LaunchTraining) {
            roles.extend([Role::Vae, Role::TextEncoder]);
        }
        if self.has(Step::LaunchTraining) {
            roles.push(Role::Dit);
            roles.extend(options::merge_base_weights(self.trainer)?.then_some(Role::Adapter));
        }
        let installed = py.import("musubitraining")?.getattr("__file__")?;
        let installed = installed
            .extract::<PathBuf>()?
            .with_file_name("installed.py");
        let largest = toml_text
            .and_then(|text| config::parse(text).ok())
            .map_or((1024 * 1024, 1), |config| config.largest());
        Ok(Asked {
            steps: self.steps.clone(),
            runs_converter: self.runs_converter,
            models: folder("absolute_path_models")?,
            training: folder("absolute_path_training_folder")?,
            output: folder("absolute_path_output")?,
            weights: roles.into_iter().map(weights).collect::<PyResult<_>>()?,
            python: interpreter::executable(py)?,
            environment: interpreter::environment(py, Some(clone.source_folder()))?,
            clone,
            settings,
            largest,
            photos,
            installed,
        })
    }

    /// The words of each step's command, as the steps themselves put them together.
    fn commands(
        &self,
        asked: &Asked,
        training: &Training,
        is_renamed: bool,
    ) -> PyResult<Vec<(&'static str, Vec<OsString>)>> {
        let (python, clone) = (&asked.python, &asked.clone);
        let dataset_toml = Layout::new(&asked.training).dataset_toml();
        let weights = |role: Role| absolute(&weights_of(self.trainer, role.field())?);
        let mut commands = Vec::new();
        if self.has(Step::PreCache) {
            let latents = tuner::cache_latents(python, clone, &dataset_toml, &weights(Role::Vae)?);
            let text_encoder = weights(Role::TextEncoder)?;
            let text = tuner::cache_text_encoder_outputs(
                python,
                clone,
                &dataset_toml,
                &text_encoder,
                options::text_cache_words(self.trainer)?,
            );
            commands.extend([
                ("precache:latents", latents),
                ("precache:text_encoder", text),
            ]);
        }
        if self.has(Step::LaunchTraining) {
            let base_weights = if is_renamed {
                Some(asked.training.join(RENAMED_ADAPTER))
            } else if options::merge_base_weights(self.trainer)? {
                Some(weights(Role::Adapter)?)
            } else {
                None
            };
            let files = WeightFiles {
                vae: weights(Role::Vae)?,
                text_encoder: weights(Role::TextEncoder)?,
                dit: weights(Role::Dit)?,
                base_weights,
            };
            commands.push((
                "train",
                tuner::train(
                    python,
                    clone,
                    &dataset_toml,
                    &files,
                    options::launch_words(self.trainer)?,
                    options::training_words(self.trainer, training)?,
                ),
            ));
        }
        if self.has(Step::ConvertForComfyui) && self.runs_converter {
            let trained = format!("{}.safetensors", training.output_name);
            let trained = training.output_folder.join(trained);
            let script = std::fs::read(clone.conversion_script()).unwrap_or_default();
            let call = tuner::converter_call(&String::from_utf8_lossy(&script));
            let convert = tuner::convert(
                python,
                clone,
                call.first,
                &trained,
                &converted_path(&trained),
            );
            commands.push(("convert:comfyui", convert));
        }
        Ok(commands)
    }

    fn to_python(&self, commands: Vec<(&str, Vec<OsString>)>) -> PyResult<Bound<'py, PyAny>> {
        let py = self.py();
        let module = py.import("musubitraining.plan")?;
        let kind = module.getattr("Check")?;
        let checks: Vec<Bound<'py, PyAny>> = self
            .checks
            .iter()
            .map(|check| {
                let verdict = match check.verdict {
                    Verdict::Ok => "ok",
                    Verdict::Warning => "warning",
                    Verdict::Error => "error",
                };
                let values = [
                    ("name", check.name.as_str()),
                    ("verdict", verdict),
                    ("found", &check.found),
                    ("expected", &check.expected),
                    ("mend", &check.mend),
                ];
                kind.call((), Some(&values.into_py_dict(py)?))
            })
            .collect::<PyResult<_>>()?;
        let words = PyDict::new(py);
        for (step, command) in commands {
            words.set_item(step, PyList::new(py, command)?)?;
        }
        let plan = PyDict::new(py);
        plan.set_item("checks", PyTuple::new(py, checks)?)?;
        plan.set_item("commands", words)?;
        module.getattr("Plan")?.call((), Some(&plan))
    }
}

impl Photos {
    /// The check, and the size of the zip where it is known.
    fn check(&self, cancel: &Cancel) -> Result<(Check, Option<u64>), Error> {
        let place = match &self.place {
            Place::Server(url) => {
                let answer = dataset::ask(url, SERVER_LIMIT, cancel)?;
                let bytes = match &answer {
                    Answer::File { bytes, .. } => *bytes,
                    _ => None,
                };
                let check = plan::archive::of_server(&url.host(), answer, self.limits.zip_bytes);
                return Ok((check, bytes));
            }
            Place::Here(arguments::Photos::Text(text)) => dataset::Photos::Text(text),
            Place::Here(arguments::Photos::Path(path)) | Place::Dataset(path) => {
                dataset::Photos::Path(path)
            }
        };
        match dataset::survey(place, &self.options, &self.limits, cancel) {
            Err(Error::Cancelled) => Err(Error::Cancelled),
            Err(error) => Ok((plan::archive::unreadable(&error), None)),
            Ok(Some(survey)) if matches!(self.place, Place::Dataset(_)) => {
                Ok((plan::archive::in_place(&survey), None))
            }
            Ok(survey) => Ok((plan::archive::here(survey.as_ref()), None)),
        }
    }
}

/// All that the checks are asked of, without the interpreter.
struct Asked {
    steps: Vec<Step>,
    runs_converter: bool,
    models: PathBuf,
    training: PathBuf,
    output: PathBuf,
    clone: MusubiTuner,
    weights: Vec<WeightFile>,
    python: OsString,
    /// Of a step.
    environment: Vec<(OsString, OsString)>,
    settings: Settings,
    /// Pixels of a photo, and photos at once.
    largest: (u64, u64),
    photos: Option<Photos>,
    /// The program that says what an interpreter has.
    installed: PathBuf,
}

impl Asked {
    fn has(&self, step: Step) -> bool {
        self.steps.contains(&step)
    }

    /// The checks, and whether the adapter will be renamed.
    fn check(&self, cancel: &Cancel) -> Result<(Vec<Check>, bool), Error> {
        let environment = plan::environment::of(self.environment.clone());
        let repository = self
            .clone
            .tokenizer_repository()
            .filter(|_| self.has(Step::PreCache));
        let tokenizer = repository.map(|repository| {
            let found = plan::tokenizer::look(&repository, self.clone.folder(), &environment);
            (repository, found)
        });
        thread::scope(|scope| {
            let driver = scope.spawn(|| within(DRIVER_LIMIT, cancel, gpu::look));
            let installed = scope.spawn(|| self.ask_interpreter(cancel));
            let photos = self
                .photos
                .as_ref()
                .map(|photos| scope.spawn(|| photos.check(cancel)));
            let hub = match &tokenizer {
                Some((repository, Found::Not(_))) if !plan::tokenizer::is_offline(&environment) => {
                    let address = plan::tokenizer::address(repository, &environment);
                    Some(scope.spawn(move || ask_hub(&address, cancel)))
                }
                _ => None,
            };

            let mut checks = self.folders();
            let project = Project::of(&self.clone);
            checks.push(plan::clone::version(project.as_ref()));
            checks.extend(
                self.scripts()
                    .iter()
                    .map(|script| plan::clone::script(script)),
            );
            let weights = self.look_at_weights();
            checks.extend(weights.checks);
            let mut zip_bytes = None;
            if let Some((check, bytes)) = photos.map(joined).transpose()? {
                checks.push(check);
                zip_bytes = bytes;
            }

            let driver = joined(driver)?.unwrap_or_else(|| Err(late_driver()));
            let has_gpu = matches!(&driver, Ok(Some(driver)) if !driver.gpus.is_empty());
            let installed = joined(installed)?;
            let runs = self.has(Step::PreCache) || self.has(Step::LaunchTraining);
            if runs {
                checks.extend(self.packages(&installed, project.as_ref(), has_gpu));
            }
            if let Some((repository, found)) = &tokenizer {
                let answer = hub.map(joined).transpose()?;
                checks.push(plan::tokenizer::check(repository, found, answer));
            }
            if runs {
                checks.extend(plan::environment::check(&environment, &self.settings));
                let cuda = installed.as_ref().ok().and_then(plan::packages::cuda_of);
                checks.extend(plan::gpu::check(&plan::gpu::Facts {
                    driver: &driver,
                    visible_devices: environment.get("CUDA_VISIBLE_DEVICES").map(String::as_str),
                    device_order: environment.get("CUDA_DEVICE_ORDER").map(String::as_str),
                    need: weights.need,
                    cuda: cuda.as_deref(),
                    settings: &self.settings,
                }));
                checks.push(self.ram(&weights.dit, weights.need, has_gpu));
            }
            checks.extend(self.disks(&weights.dit, zip_bytes));
            Ok((checks, weights.is_renamed))
        })
    }

    fn folders(&self) -> Vec<Check> {
        vec![
            plan::folders::readable("models folder", &self.models),
            plan::folders::readable("Musubi Tuner folder", self.clone.folder()),
            plan::folders::writable("training folder", &self.training),
            plan::folders::writable("output folder", &self.output),
        ]
    }

    fn scripts(&self) -> Vec<PathBuf> {
        let mut scripts = Vec::new();
        if self.has(Step::PreCache) {
            scripts.extend([
                self.clone.latents_script(),
                self.clone.text_encoder_script(),
            ]);
        }
        if self.has(Step::LaunchTraining) {
            scripts.push(self.clone.training_script());
        }
        if self.has(Step::ConvertForComfyui) && self.runs_converter {
            scripts.push(self.clone.conversion_script());
        }
        scripts
    }

    fn look_at_weights(&self) -> LookedAt {
        let mut looked = LookedAt {
            checks: Vec::new(),
            dit: Dit::default(),
            need: None,
            is_renamed: false,
        };
        let (pixels, batch) = self.largest;
        let mut of_dit = None;
        let mut of_adapter = None;
        for file in &self.weights {
            let (check, metadata) = plan::weights::look(file);
            looked.checks.push(check);
            let Some(metadata) = metadata else { continue };
            let parameters = plan::memory::parameters(&metadata);
            let need = match file.role {
                // Not loaded by a training.
                Role::Vae | Role::TextEncoder if !self.has(Step::PreCache) => continue,
                Role::Vae => ("latents", plan::memory::vae(parameters, pixels, batch)),
                Role::TextEncoder => (
                    "text encoder",
                    plan::memory::text_encoder(parameters, &self.settings),
                ),
                Role::Dit => {
                    looked.dit = Dit::of(&metadata);
                    of_dit = Some(metadata);
                    let need = plan::memory::training(&looked.dit, &self.settings, pixels, batch);
                    ("training", need)
                }
                Role::Adapter => {
                    of_adapter = Some((file.path.as_path(), metadata));
                    continue;
                }
            };
            if looked
                .need
                .is_none_or(|(_, largest)| largest.total < need.1.total)
            {
                looked.need = Some(need);
            }
        }
        if let Some(dit) = self.weights.iter().find(|file| file.role == Role::Dit) {
            // Without a word on an adapter that is not there: its own check has it.
            let is_given = self.weights.iter().any(|file| file.role == Role::Adapter);
            let adapter = of_adapter
                .as_ref()
                .map(|(path, metadata)| (*path, metadata));
            if adapter.is_some() || !is_given {
                looked.checks.extend(plan::weights::adapter(
                    &dit.path,
                    of_dit.as_ref(),
                    adapter,
                    &self.clone,
                ));
            }
        }
        looked.is_renamed = of_adapter
            .is_some_and(|(path, _)| checks::is_merged_in_vain(path, &self.clone).unwrap_or(false));
        looked
    }

    fn packages(
        &self,
        installed: &Result<Installed, String>,
        project: Option<&Project>,
        has_gpu: bool,
    ) -> Vec<Check> {
        let python = self.python.to_string_lossy();
        match installed {
            Ok(installed) => plan::packages::check(
                installed,
                &python,
                project,
                &self.clone.source_folder(),
                &self.settings,
                has_gpu,
            ),
            Err(why) => vec![
                Question::new("Python", "an interpreter that runs Musubi Tuner's scripts").error(
                    format!("{python} (sys.executable) does not answer: {why}"),
                    "set sys.executable to the interpreter of the environment with PyTorch",
                ),
            ],
        }
    }

    /// Asks the interpreter that runs the scripts, in their environment, what it has.
    fn ask_interpreter(&self, cancel: &Cancel) -> Result<Result<Installed, String>, Error> {
        let questions = plan::packages::questions(&self.settings);
        let questions = serde_json::to_string(&questions).unwrap_or_default();
        let command = Command {
            argv: vec![
                self.python.clone(),
                self.installed.clone().into(),
                questions.into(),
            ],
            cwd: if self.clone.folder().is_dir() {
                self.clone.folder().to_owned()
            } else {
                PathBuf::from("/")
            },
            environment: self.environment.clone(),
            locks: Vec::new(),
        };
        let mut said = String::new();
        let ended = process::run(&command, cancel, |lines| {
            if said.len() < LONGEST_ANSWER_BYTES {
                said.push_str(&lines);
            }
            Ok(())
        });
        match ended {
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            Err(error) => return Ok(Err(error.to_string())),
            Ok(_) => {}
        }
        let last = said.lines().rev().find(|line| !line.trim().is_empty());
        let last = last.unwrap_or_default();
        let answer: serde_json::Value = serde_json::from_str(last).unwrap_or_default();
        let Some(python) = answer["python"].as_str() else {
            let told: String = last.chars().take(TOLD_LETTERS).collect();
            return Ok(Err(format!("it says {told:?}")));
        };
        let table = |name: &str| {
            let entries = answer[name].as_object().into_iter().flatten();
            entries
                .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                .collect()
        };
        Ok(Ok(Installed {
            python: python.to_owned(),
            versions: table("versions"),
            modules: table("modules"),
        }))
    }

    fn ram(&self, dit: &Dit, need: Option<(&str, Need)>, has_gpu: bool) -> Check {
        let in_ram = if has_gpu {
            let of_block = dit.block_parameters.saturating_mul(2) / dit.blocks.max(1);
            of_block.saturating_mul(self.settings.blocks_to_swap.min(dit.blocks))
        } else {
            need.map_or(0, |(_, need)| need.total)
        };
        let cgroup = MemoryCgroup::of_this_process();
        plan::memory::ram(
            cgroup::available_bytes(cgroup.as_ref()),
            cgroup.as_ref().and_then(MemoryCgroup::limit_bytes),
            in_ram,
        )
    }

    fn disks(&self, dit: &Dit, zip_bytes: Option<u64>) -> Vec<Check> {
        let disk = |name: &str, folder: &Path, needed: Room| {
            let existing = folder.ancestors().find(|part| part.exists());
            let free = existing.and_then(|existing| disk::free_bytes(existing).ok());
            plan::memory::disk(name, folder, needed, free)
        };
        let mut checks = Vec::new();
        if self.has(Step::PrepareDataset) {
            // The zip and its files are there at once.
            let needed = zip_bytes.map_or(Room::About(DATASET_BYTES), |bytes| {
                Room::Known(bytes.saturating_mul(2))
            });
            checks.push(disk("training folder", &self.training, needed));
        }
        if self.has(Step::LaunchTraining) {
            let converts = self.has(Step::ConvertForComfyui);
            let needed = plan::memory::output_bytes(dit, &self.settings, converts);
            checks.push(disk("output folder", &self.output, Room::Known(needed)));
        }
        checks
    }
}

/// What the weight files say.
struct LookedAt {
    checks: Vec<Check>,
    dit: Dit,
    /// Of the step that takes most of a GPU.
    need: Option<(&'static str, Need)>,
    is_renamed: bool,
}

fn late_driver() -> gpu::Fault {
    gpu::Fault {
        found: format!(
            "a driver that gives no answer in {} s",
            DRIVER_LIMIT.as_secs()
        ),
        mend: "See whether `nvidia-smi` answers".to_owned(),
    }
}

fn ask_hub(address: &str, cancel: &Cancel) -> Result<Answer, Error> {
    match RedactedUrl::parse(address) {
        Ok(url) => dataset::ask(&url, SERVER_LIMIT, cancel),
        Err(_) => Ok(Answer::Refused(
            "HF_ENDPOINT is no http:// or https:// address".to_owned(),
        )),
    }
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}
