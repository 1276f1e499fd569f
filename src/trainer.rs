//! `MusubiTraining`, the class users hold: the order of the steps, every step through `self`.
//!
//! Its instances keep everything in their `__dict__`, like those of the Python class that this one stands in for: that
//! is what makes them assignable, picklable and subclassable in every way that people use.

mod arguments;
mod at_once;
mod caches;
mod checks;
mod dataset_limits;
mod dataset_options;
mod evidence;
mod freshness;
mod log;
mod netrc;
mod options;
mod plan;
mod record;
mod run;
mod step;
mod step_events;
mod written_toml;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyBool, PyDict, PyList, PyString, PyTuple};

use crate::config::ImageFolder;
use crate::convert::{self, Form};
use crate::error::Error;
use crate::folder_lock::Access;
use crate::plain_class::PlainClass;
use crate::process::{Command, WarmInterpreter};
use crate::progress::Heard;
use crate::read_ahead::ReadAhead;
use crate::tuner::{self, MusubiTuner, Training, WeightFiles};
use crate::{adapter, config, dataset, interpreter, interrupt};
use arguments::{Given, Photos};
use at_once::Decision;
use caches::Kind;
use checks::Step;
use freshness::Before;
use log::Log;
use record::{Around, Listeners, Record};
use run::{Run, Warm};

pub use dataset_limits::dataclass as dataset_limits_class;
pub use written_toml::dataset_toml;

const DOC: &str = "\
Trains photo LoRAs for Z-Image with Musubi Tuner.

Args:
    absolute_path_models (str | os.PathLike[str]): the folder of the weight files; it must exist.
    models_for_training (Models): their names; any object with the four attributes will do.
    absolute_path_training_folder (str | os.PathLike[str]): where the dataset is built; created when it is needed.
    absolute_path_output (str | os.PathLike[str]): where the LoRA is written; created at once.
    absolute_path_musubi_tuner (str | os.PathLike[str]): a clone of Musubi Tuner; it must exist.
    options (TrainingOptions): how to train, by default as TechTrash_MusubiTraining 0.0.11.
    launch_options (LaunchOptions): how the training is launched, likewise.
    dataset_options (DatasetOptions): how photos and captions are taken, likewise.

The five are plain attributes that are read when a method runs. A relative path counts from the current folder.
A sixth, `dataset_limits` (DatasetLimits), may be set: how much a zip of photos may bring.

Raises:
    FileNotFoundError: the models folder or the clone does not exist.";

/// The file in the training folder that an adapter is renamed into.
const RENAMED_ADAPTER: &str = "base_weights_musubi.safetensors";

/// What `Models` has for each step that reads weights.
const FOR_CACHING: [&str; 2] = ["ae", "text_encoder"];

fn for_training(slf: &Bound<'_, PyAny>) -> PyResult<&'static [&'static str]> {
    let fields: &[&str] = &["DiT", "base_weights"];
    Ok(if options::merge_base_weights(slf)? {
        fields
    } else {
        &fields[..1]
    })
}

/// Steps, as the log and the record have them.
const DATASET: &str = "dataset";
const TRAINING: &str = "train";
const CONVERSION: &str = "convert:comfyui";
/// Where somebody else does both.
const CACHING: &str = "precache";

const OUTPUT_NAME: &str = "output_lora_model";
const MAX_TRAIN_STEPS: u32 = 2000;
const SEED: u32 = 42;

#[pyfunction(name = "__init__")]
#[pyo3(
    signature = (
        slf, absolute_path_models, models_for_training, absolute_path_training_folder, absolute_path_output,
        absolute_path_musubi_tuner, *, options=None, launch_options=None, dataset_options=None
    )
)]
#[expect(clippy::too_many_arguments, reason = "the original's signature")]
fn initialise(
    slf: &Bound<'_, PyAny>,
    absolute_path_models: Bound<'_, PyAny>,
    models_for_training: Bound<'_, PyAny>,
    absolute_path_training_folder: Bound<'_, PyAny>,
    absolute_path_output: Bound<'_, PyAny>,
    absolute_path_musubi_tuner: Bound<'_, PyAny>,
    options: Option<Bound<'_, PyAny>>,
    launch_options: Option<Bound<'_, PyAny>>,
    dataset_options: Option<Bound<'_, PyAny>>,
) -> PyResult<()> {
    let py = slf.py();
    let builtins = py.import("builtins")?;
    builtins
        .getattr("super")?
        .call1((class(py)?, slf))?
        .call_method0("__init__")?;
    log::configure_root(py)?;
    slf.setattr("absolute_path_models", absolute_path_models)?;
    slf.setattr("models_for_training", models_for_training)?;
    slf.setattr(
        "absolute_path_training_folder",
        absolute_path_training_folder,
    )?;
    slf.setattr("absolute_path_output", absolute_path_output)?;
    slf.setattr("absolute_path_musubi_tuner", absolute_path_musubi_tuner)?;
    options::set(slf, [options, launch_options, dataset_options])?;
    for (attribute, what) in [
        ("absolute_path_models", "Models folder not found"),
        (
            "absolute_path_musubi_tuner",
            "Musubi Tuner github project folder not found",
        ),
    ] {
        let path = path_of(slf, attribute)?;
        checks::exists(what, &path)?;
    }
    Ok(make_folder(&path_of(slf, "absolute_path_output")?)?)
}

/// Run a command and log every line of its merged stdout and stderr, live.
///
/// Args:
///     step (str): what to call it in the log.
///     cmd (list[str]): program and arguments.
///     cwd (str): the folder to run it in.
///
/// The command has no stdin, and its whole process tree ends when this returns or raises, or when this process
/// dies.
///
/// Raises:
///     subprocess.CalledProcessError: it failed; `returncode` is negative for a signal, `output` has the last lines,
///         and the message says why where that is known.
///     OSError: it could not be started.
///     Cancelled: `cancel()` was called.
#[pyfunction]
#[pyo3(signature = (slf, step, cmd, *, cwd))]
fn _run_cmd(
    slf: &Bound<'_, PyAny>,
    step: &Bound<'_, PyAny>,
    cmd: &Bound<'_, PyAny>,
    cwd: &Bound<'_, PyAny>,
) -> PyResult<()> {
    step::run(slf, step, cmd, cwd)
}

/// Parse the dataset TOML, as Python's `tomllib` does.
///
/// Args:
///     toml_content (str): TOML 1.0.
///
/// Returns:
///     dict[str, Any]: what it says.
///
/// Raises:
///     ValueError: it is no TOML; its `__cause__`, a `tomllib.TOMLDecodeError`, says where.
#[pyfunction]
fn _validate_toml_str<'py>(
    slf: &Bound<'py, PyAny>,
    toml_content: &str,
) -> PyResult<Bound<'py, PyDict>> {
    config::parse(toml_content)
        .map_err(PyErr::from)?
        .to_python(slf.py())
}

/// Download the zip of photos and make a ready dataset of it: `images/` with a caption beside each photo, an empty
/// `cache/`, and `dataset.toml`.
///
/// Args:
///     dataset_toml_content (str | None): Musubi Tuner's dataset configuration; None for that of `dataset_toml`.
///     images_zip_url (str | os.PathLike[str]): where the zip is, http or https; or the path or file:// URL of a zip or a
///         folder of photos that is here, in which nothing is changed.
///     trigger_word (str): the caption of every photo, or a part of it (see `DatasetOptions`).
///
/// Returns:
///     str: the path of `dataset.toml`.
///
/// The dataset that was there before stays until the new one stands. Photos that Musubi Tuner would take amiss are put
/// right: turned upright as EXIF asks for, laid on white where they are transparent, converted from CMYK and from 16
/// bits. `photos.json` in the training folder says of each photo where it is from and what was done.
///
/// Raises:
///     ValueError: the TOML does not parse, or no photo is left.
///     FileNotFoundError, OSError: a zip or folder that is here cannot be read.
///     zipfile.BadZipFile: what came is not a zip.
///     DownloadError: the zip could not be had (an OSError, and a requests.RequestException where requests is
///         installed).
///     RuntimeError: another run has the training folder; a file changed while it was read.
///     Cancelled: `cancel()` was called.
#[pyfunction]
fn _prepare_dataset(
    slf: &Bound<'_, PyAny>,
    dataset_toml_content: &Bound<'_, PyAny>,
    images_zip_url: &Bound<'_, PyAny>,
    trigger_word: &Bound<'_, PyAny>,
) -> PyResult<OsString> {
    let py = slf.py();
    let log = Log::of(slf)?;
    let folder = path_of(slf, "absolute_path_training_folder")?;
    log.info(("[dataset] preparing dataset folder=%s", folder.as_os_str()))?;
    let photos = Photos::of(images_zip_url)?;
    let trigger_word = arguments::text("trigger_word", trigger_word)?;
    let dataset_toml_content = &toml_or_usual(slf, dataset_toml_content)?;
    let toml_text = arguments::text("dataset_toml_content", dataset_toml_content)?;
    let options = dataset_options::of(slf)?;
    let limits = dataset_limits::of(slf)?;
    let config = config::parse(&toml_text).ok();
    checks::cache_folders(config.as_ref(), &folder)?;
    let run = Run::of(slf)?;
    let _alone = run.alone("prepare the dataset", &folder)?;
    make_folder(&folder)?;
    run.claim(py, &folder, Access::Alone)?;
    slf.call_method1("_validate_toml_str", (dataset_toml_content,))?;
    let layout = dataset::Layout::new(&folder);
    let images = absolute(&layout.images())?;
    for warning in config.iter().flat_map(|config| config.warnings(&images)) {
        log.warning(("[dataset] %s", warning))?;
    }
    let cuts = config.iter().flat_map(|config| config.cuts(&images));
    let buckets = cuts.filter_map(|cut| {
        dataset::Buckets::new(cut.resolution, cut.enable_bucket, cut.bucket_no_upscale)
    });
    let buckets: Vec<dataset::Buckets> = buckets.collect();
    let photos = match photos {
        Photos::Text(text) => Photos::Text(netrc::with_credentials(py, text)),
        path @ Photos::Path(_) => path,
    };
    let source = dataset::Source {
        toml_text: &toml_text,
        photos: match &photos {
            Photos::Text(text) => dataset::Photos::Text(text),
            Photos::Path(path) => dataset::Photos::Path(path),
        },
        trigger_word: &trigger_word,
        options: &options,
        buckets: &buckets,
    };
    interrupt::run(
        py,
        &run,
        |task| dataset::prepare(&folder, &source, &limits, task),
        |_, line| log.line(&line),
    )?;
    Ok(layout.dataset_toml().into())
}

/// The dataset's TOML as it is given, or the usual one for None.
fn toml_or_usual<'py>(
    slf: &Bound<'py, PyAny>,
    given: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    if !given.is_none() {
        return Ok(given.clone());
    }
    let text = written_toml::usual(&path_of(slf, "absolute_path_training_folder")?)?;
    Ok(PyString::new(slf.py(), &text).into_any())
}

/// Cache the photos' latents and the captions' text encoder outputs, with Musubi Tuner's two scripts.
///
/// Args:
///     dataset_toml_path (str | os.PathLike[str]): the dataset configuration.
///
/// Raises:
///     FileNotFoundError: the configuration, a script or a weight file does not exist.
///     RuntimeError: a weight file is cut, or something else in its place; a script found no images, or left photos
///         without a cache; another run has the training folder.
///     subprocess.CalledProcessError: a script failed.
///     Cancelled: `cancel()` was called.
#[pyfunction]
fn _pre_cache(slf: &Bound<'_, PyAny>, dataset_toml_path: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = slf.py();
    let dataset_toml: PathBuf = dataset_toml_path.extract()?;
    checks::exists("dataset.toml not found", &dataset_toml)?;
    checks::pre_cache(slf)?;

    // The folder is this run's until it is dropped.
    let _run = run_of_step(slf, Access::Alone)?;
    let clone = clone_of(slf)?;
    let python = interpreter::executable(py)?;
    let dataset_toml = absolute(&dataset_toml)?;
    let vae = absolute(&weights_of(slf, "ae")?)?;
    let text_encoder = absolute(&weights_of(slf, "text_encoder")?)?;
    let latents = Caching {
        step: "precache:latents",
        argv: tuner::cache_latents(&python, &clone, &dataset_toml, &vae),
        kind: Kind::Latents,
    };
    let text_encoder_outputs = Caching {
        step: "precache:text_encoder",
        argv: tuner::cache_text_encoder_outputs(
            &python,
            &clone,
            &dataset_toml,
            &text_encoder,
            options::text_cache_words(slf)?,
        ),
        kind: Kind::TextEncoderOutputs,
    };
    if !is_replaced(slf, "_run_cmd")? && are_cached_at_once(slf, &vae, &text_encoder)? {
        return cache_at_once(slf, &dataset_toml, [&latents, &text_encoder_outputs]);
    }
    latents.run(slf, &dataset_toml)?;
    text_encoder_outputs.run(slf, &dataset_toml)
}

/// Whether both fit into memory together; says so.
fn are_cached_at_once(slf: &Bound<'_, PyAny>, vae: &Path, text_encoder: &Path) -> PyResult<bool> {
    let decision = interrupt::run_quietly(slf.py(), Run::of(slf)?.cancel(), |_| {
        Ok(at_once::decide(vae, text_encoder, at_once::Free::now()))
    })?;
    let (at_once, how, why) = match decision {
        Decision::AtOnce(why) => (true, "at the same time", why),
        Decision::OneByOne(why) => (false, "one after the other", why),
    };
    Log::new(slf.py())?.info((
        "[precache] latents and text encoder outputs are cached %s: %s",
        how,
        why,
    ))?;
    Ok(at_once)
}

/// A caching step, which ends well when it has found nothing to cache, or not all.
struct Caching {
    step: &'static str,
    argv: Vec<OsString>,
    kind: Kind,
}

impl Caching {
    fn run(&self, trainer: &Bound<'_, PyAny>, dataset_toml: &Path) -> PyResult<()> {
        let folders = image_folders(trainer, dataset_toml)?;
        let before = caches::Before::look(&folders, self.kind);
        match run_step(trainer, self.step, &self.argv)? {
            Some(heard) => self.judge(trainer, dataset_toml, &folders, &before, &heard),
            None => Ok(()),
        }
    }

    fn judge(
        &self,
        trainer: &Bound<'_, PyAny>,
        dataset_toml: &Path,
        folders: &[ImageFolder],
        before: &caches::Before,
        heard: &Heard,
    ) -> PyResult<()> {
        let log = Log::of(trainer)?;
        let images = evidence::images(heard, dataset_toml, folders)?;
        for warning in images
            .into_iter()
            .chain(before.complete(folders, self.kind)?)
        {
            log.warning(("[%s] %s", self.step, warning))?;
        }
        Ok(())
    }
}

fn cache_at_once(
    slf: &Bound<'_, PyAny>,
    dataset_toml: &Path,
    caching: [&Caching; 2],
) -> PyResult<()> {
    let py = slf.py();
    let folders = image_folders(slf, dataset_toml)?;
    let before = caching.map(|caching| caches::Before::look(&folders, caching.kind));
    let run = Run::of(slf)?;
    let cwd = absolute(&path_of(slf, "absolute_path_musubi_tuner")?)?;
    let cwd = cwd.into_os_string().into_pyobject(py)?.into_any();
    let steps = caching.map(|caching| {
        // Of an earlier call.
        drop(run.heard(caching.step));
        let name = PyString::new(py, caching.step).into_any();
        let cmd = PyList::new(py, &caching.argv)?.into_any();
        step::Step::new(slf, &name, &cmd, &cwd)
    });
    let [first, second] = steps;
    let judge = |index: usize| match run.heard(caching[index].step) {
        Some(heard) => caching[index].judge(slf, dataset_toml, &folders, &before[index], &heard),
        None => Ok(()),
    };
    step::run_at_once(slf, [first?, second?], || judge(0))?;
    judge(1)
}

/// The folders of photos in a dataset's TOML. One that cannot be read is for the tuner to refuse.
fn image_folders(slf: &Bound<'_, PyAny>, dataset_toml: &Path) -> PyResult<Vec<ImageFolder>> {
    let clone = absolute(&path_of(slf, "absolute_path_musubi_tuner")?)?;
    let config = fs::read_to_string(dataset_toml)
        .ok()
        .and_then(|text| config::parse(&text).ok());
    let mut folders = config.map_or_else(Vec::new, |config| config.image_folders());
    for folder in &mut folders {
        folder.images = clone.join(&folder.images);
        folder.caches = clone.join(&folder.caches);
    }
    Ok(folders)
}

/// Train the LoRA, with `accelerate launch` of Musubi Tuner's script.
///
/// Args:
///     dataset_toml_path (str | os.PathLike[str]): the dataset configuration.
///     output_name (str): the LoRA's file name without its ending, default "output_lora_model".
///     max_train_steps (int): optimisation steps, at least 1, default 2000.
///     seed (int): of the training's random numbers, 0 to 2**32 - 1, default 42.
///
/// Returns:
///     str: the path of the LoRA that this run has written.
///
/// Raises:
///     FileNotFoundError: something that is needed, or the LoRA after the run, does not exist.
///     RuntimeError: accelerate is missing; a weight file is cut, or something else in its place; the loss was NaN to
///         the end, or the LoRA is cut or holds values that are no finite numbers; another run has the training folder.
///     ValueError, TypeError: an argument cannot work.
///     subprocess.CalledProcessError: the training failed.
///     Cancelled: `cancel()` was called.
#[pyfunction]
#[pyo3(
    signature = (slf, dataset_toml_path, *, output_name=Given(None), max_train_steps=Given(None), seed=Given(None)),
    text_signature = "(self, dataset_toml_path, *, output_name='output_lora_model', max_train_steps=2000, seed=42)"
)]
fn _launch_training(
    slf: &Bound<'_, PyAny>,
    dataset_toml_path: &Bound<'_, PyAny>,
    output_name: Given<'_>,
    max_train_steps: Given<'_>,
    seed: Given<'_>,
) -> PyResult<OsString> {
    let py = slf.py();
    let output_folder = path_of(slf, "absolute_path_output")?;
    let training = Training {
        output_folder: absolute(&output_folder)?,
        output_name: arguments::output_name(&output_name.or(py, OUTPUT_NAME)?)?,
        max_train_steps: arguments::max_train_steps(&max_train_steps.or(py, MAX_TRAIN_STEPS)?)?,
        seed: arguments::seed(&seed.or(py, SEED)?)?,
    };
    let dataset_toml: PathBuf = dataset_toml_path.extract()?;
    checks::exists("dataset.toml not found", &dataset_toml)?;
    checks::launch_training(slf)?;

    let run = run_of_step(slf, Access::Reading)?;
    let clone = clone_of(slf)?;
    let weights = WeightFiles {
        vae: absolute(&weights_of(slf, "ae")?)?,
        text_encoder: absolute(&weights_of(slf, "text_encoder")?)?,
        dit: absolute(&weights_of(slf, "DiT")?)?,
        base_weights: mergeable_adapter(slf, &clone, &run)?,
    };
    let python = interpreter::executable(py)?;
    let argv = tuner::train(
        &python,
        &clone,
        &absolute(&dataset_toml)?,
        &weights,
        options::launch_words(slf)?,
        options::training_words(slf, &training)?,
    );
    let trained = output_folder.join(format!("{}.safetensors", training.output_name));
    let before = Before::look(&trained);
    if let Some(heard) = run_step(slf, TRAINING, &argv)? {
        before.written_since("Trained model not found", &trained)?;
        evidence::loss(&heard, &trained)?;
        evidence::lora(py, &run, &trained)?;
    }
    Ok(trained.into())
}

/// Convert a trained LoRA to the form that ComfyUI loads, with the clone's own script.
///
/// Args:
///     model_path (str | os.PathLike[str]): the trained LoRA.
///
/// Returns:
///     str: `model_path` with `_comfyui.safetensors` in place of `.safetensors`.
///
/// Raises:
///     FileNotFoundError: the LoRA, the script, or the converted file after the run does not exist.
///     RuntimeError: the converted file is cut, or holds values that are no finite numbers.
///     subprocess.CalledProcessError: the script failed.
///     Cancelled: `cancel()` was called.
#[pyfunction]
fn _convert_for_comfyui(
    slf: &Bound<'_, PyAny>,
    model_path: &Bound<'_, PyAny>,
) -> PyResult<OsString> {
    let model: PathBuf = model_path.extract()?;
    checks::exists("Trained model not found", &model)?;
    checks::conversion_script(slf)?;

    let run = Run::of(slf)?;
    let converted = converted_path(&model);
    if run.converts_natively() && is_converted_natively(slf, &run, &model, &converted)? {
        return Ok(converted.into());
    }
    let clone = clone_of(slf)?;
    let python = interpreter::executable(slf.py())?;
    let script = clone.conversion_script();
    let text = fs::read(&script).map_err(Error::io("read", &script))?;
    let before = Before::look(&converted);
    let (source, destination) = (absolute(&model)?, absolute(&converted)?);
    let call = tuner::converter_call(&String::from_utf8_lossy(&text));
    let convert = |form| {
        let argv = tuner::convert(&python, &clone, form, &source, &destination);
        run_step(slf, CONVERSION, &argv)
    };
    let ran = convert(call.first).or_else(|error| {
        let is_misunderstood = match failed_command(slf.py(), &error) {
            Some(exit_code) => {
                !call.second_after_usage_error_only || exit_code == tuner::USAGE_ERROR
            }
            None => false,
        };
        if is_misunderstood {
            convert(call.second)
        } else {
            Err(error)
        }
    })?;
    if ran.is_some() {
        before.written_since("ComfyUI model was not created", &converted)?;
        evidence::lora(slf.py(), &run, &converted)?;
    } else {
        checks::exists("ComfyUI model was not created", &converted)?;
    }
    Ok(converted.into())
}

/// Converts without the clone's script, which is to do it where this does not know the LoRA's kind.
fn is_converted_natively(
    slf: &Bound<'_, PyAny>,
    run: &Run,
    model: &Path,
    converted: &Path,
) -> PyResult<bool> {
    let py = slf.py();
    let log = Log::of(slf)?;
    let started = Instant::now();
    log.info((
        "[convert:comfyui] converting natively %s",
        model.as_os_str(),
    ))?;
    let record = run.record();
    if let Some(record) = &record {
        record.events.begin_step(CONVERSION, &[]);
    }
    let end = || {
        if let Some(record) = &record {
            record.events.end_step(CONVERSION, None, None, &[]);
        }
    };
    let outcome = interrupt::run_quietly(py, run, |task| {
        match convert::convert(model, converted, Form::Merged, || task.check()) {
            Err(Error::InvalidValue(why)) => Ok(Err(why)),
            outcome => outcome.map(Ok),
        }
    })?;
    let warnings = match outcome {
        Ok(warnings) => warnings,
        Err(why) => {
            log.warning((
                "[convert:comfyui] not converted natively, the clone's script is to do it: %s",
                why,
            ))?;
            end();
            return Ok(false);
        }
    };
    for warning in warnings {
        log.warning(("[convert:comfyui] %s", warning))?;
    }
    evidence::lora(py, run, converted)?;
    let seconds = started.elapsed().as_secs_f64();
    log.info(("[convert:comfyui] done (duration=%.1fs)", seconds))?;
    end();
    Ok(true)
}

/// Make a LoRA from a zip of photos: dataset, caches, training, conversion.
///
/// Args:
///     dataset_toml_content (str | None): Musubi Tuner's dataset configuration; None for that of `dataset_toml`. Its
///         `image_directory` and `cache_directory` must be `images` and `cache` in the training folder.
///     images_zip_url (str | os.PathLike[str]): where the zip of photos is, http or https; or the path or file:// URL of a
///         zip or a folder of photos that is here, in which nothing is changed.
///     trigger_word (str): the caption of every photo, or a part of it (see `DatasetOptions`).
///     use_pre_cache (bool): run the two caching steps, default True.
///     convert_for_comfyui (bool): convert the LoRA for ComfyUI, default True.
///     output_name (str): the LoRA's file name without its ending, default "output_lora_model".
///     max_train_steps (int): optimisation steps, at least 1, default 2000.
///     seed (int): of the training's random numbers, 0 to 2**32 - 1, default 42.
///     warm_start (bool): import PyTorch and the rest once for all steps, in one interpreter that begins while the photos
///         are downloaded and forks for each step, and convert natively; default False. Where that cannot be, the log
///         says why, and each step has an interpreter of its own.
///     native_convert (bool): convert with `convert_lora_to_comfyui` instead of the clone's script, default False. Where
///         it cannot, the log says why, and the script does.
///     options (TrainingOptions): how to train, in the place of the trainer's, which are by default those of
///         TechTrash_MusubiTraining 0.0.11.
///     launch_options (LaunchOptions): how the training is launched, in the place of the trainer's.
///     dataset_options (DatasetOptions): how photos and captions are taken, in the place of the trainer's.
///     on_event (Callable[[run_events.Event], object]): called in this thread with everything that happens, as it happens.
///         What it raises ends the run and is raised here; the run waits for it.
///     progress (bool): whether progress bars are shown; by default in a terminal and in a notebook.
///
/// Returns:
///     str: the path of the converted LoRA, or of the trained one with `convert_for_comfyui=False`.
///
/// Raises:
///     What the steps raise. Everything that can be checked beforehand is checked before anything is deleted or
///     fetched.
#[pyfunction]
#[pyo3(
    signature = (
        slf, dataset_toml_content, images_zip_url, trigger_word, *, use_pre_cache=Given(None),
        convert_for_comfyui=Given(None), output_name=Given(None), max_train_steps=Given(None), seed=Given(None),
        warm_start=false, native_convert=false, options=None, launch_options=None, dataset_options=None, on_event=None,
        progress=None
    ),
    text_signature = "(self, dataset_toml_content, images_zip_url, trigger_word, *, use_pre_cache=True, \
                      convert_for_comfyui=True, output_name='output_lora_model', max_train_steps=2000, seed=42, \
                      warm_start=False, native_convert=False, options=None, launch_options=None, \
                      dataset_options=None, on_event=None, progress=None)"
)]
#[expect(clippy::too_many_arguments, reason = "the original's signature")]
fn train<'py>(
    slf: &Bound<'py, PyAny>,
    dataset_toml_content: &Bound<'py, PyAny>,
    images_zip_url: &Bound<'py, PyAny>,
    trigger_word: &Bound<'py, PyAny>,
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
    on_event: Option<Bound<'py, PyAny>>,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = slf.py();
    let run = Run::of(slf)?;
    run.set_options([options, launch_options, dataset_options])?;
    let listeners = Listeners::of(on_event, progress, py)?;
    let log = Log::new(py)?;
    let use_pre_cache = use_pre_cache.or(py, true)?;
    let convert_for_comfyui = convert_for_comfyui.or(py, true)?;
    let output_name = output_name.or(py, OUTPUT_NAME)?;
    let max_train_steps = max_train_steps.or(py, MAX_TRAIN_STEPS)?;
    let seed = seed.or(py, SEED)?;
    log.info(("[pipeline] start use_pre_cache=%s convert_for_comfyui=%s output_name=%s max_train_steps=%s \
         seed=%s", &use_pre_cache, &convert_for_comfyui, &output_name, &max_train_steps, &seed))?;
    let steps = steps_to_check(
        slf,
        use_pre_cache.is_truthy()?,
        convert_for_comfyui.is_truthy()?,
    )?;
    if !is_replaced(slf, "_launch_training")? {
        arguments::output_name(&output_name)?;
        arguments::max_train_steps(&max_train_steps)?;
        arguments::seed(&seed)?;
    }
    let dataset_toml_content = &toml_or_usual(slf, dataset_toml_content)?;
    let mut toml_is_refused = false;
    if steps.contains(&Step::PrepareDataset) {
        Photos::of(images_zip_url)?;
        arguments::text("trigger_word", trigger_word)?;
        dataset_options::of(slf)?;
        let toml_text = arguments::text("dataset_toml_content", dataset_toml_content)?;
        let config = config::parse(&toml_text).ok();
        checks::cache_folders(
            config.as_ref(),
            &path_of(slf, "absolute_path_training_folder")?,
        )?;
        toml_is_refused = config.is_none() && !is_replaced(slf, "_validate_toml_str")?;
    }
    let folder = path_of(slf, "absolute_path_training_folder").ok();
    let _alone = folder
        .as_ref()
        .map(|folder| run.alone("train", folder))
        .transpose()?;
    if let Some(folder) = &folder {
        run.claim(py, folder, Access::Alone)?;
    }
    let call = Call {
        dataset_toml_content,
        images_zip_url,
        trigger_word,
        use_pre_cache: use_pre_cache.is_truthy()?,
        convert_for_comfyui: convert_for_comfyui.is_truthy()?,
        output_name: &output_name,
        max_train_steps: &max_train_steps,
        seed: &seed,
        warm_start,
        native_convert,
    };
    // An override may train within a training, which is of the outer one.
    let record = match run.record() {
        Some(_) => None,
        None => Record::begin(slf, &run, listeners, &call.to_record(py))?,
    };
    let mut outputs = Vec::new();
    let outcome = call.run(slf, &run, &steps, toml_is_refused, &mut outputs);
    match record {
        Some(record) => record.end(slf, &run, &outputs, outcome),
        None => outcome,
    }
}

/// What `train` is called with, checked as far as that goes.
#[expect(clippy::struct_excessive_bools, reason = "the parameters of `train`")]
struct Call<'a, 'py> {
    dataset_toml_content: &'a Bound<'py, PyAny>,
    images_zip_url: &'a Bound<'py, PyAny>,
    trigger_word: &'a Bound<'py, PyAny>,
    use_pre_cache: bool,
    convert_for_comfyui: bool,
    output_name: &'a Bound<'py, PyAny>,
    max_train_steps: &'a Bound<'py, PyAny>,
    seed: &'a Bound<'py, PyAny>,
    warm_start: bool,
    native_convert: bool,
}

impl<'py> Call<'_, 'py> {
    fn to_record(&self, py: Python<'py>) -> Vec<(&'static str, Bound<'py, PyAny>)> {
        let flag = |value: bool| PyBool::new(py, value).to_owned().into_any();
        vec![
            ("dataset_toml_content", self.dataset_toml_content.clone()),
            ("images_zip_url", self.images_zip_url.clone()),
            ("trigger_word", self.trigger_word.clone()),
            ("use_pre_cache", flag(self.use_pre_cache)),
            ("convert_for_comfyui", flag(self.convert_for_comfyui)),
            ("output_name", self.output_name.clone()),
            ("max_train_steps", self.max_train_steps.clone()),
            ("seed", self.seed.clone()),
            ("warm_start", flag(self.warm_start)),
            ("native_convert", flag(self.native_convert)),
        ]
    }

    /// The steps, one after the other; `outputs` gets the files that they leave.
    fn run(
        &self,
        trainer: &Bound<'py, PyAny>,
        run: &Run,
        steps: &[Step],
        toml_is_refused: bool,
        outputs: &mut Vec<(&'static str, PathBuf)>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = trainer.py();
        let log = Log::of(trainer)?;
        run.deliver(py)?;
        // A TOML that does not parse is for `_prepare_dataset` to refuse, which it does before it touches anything.
        if !toml_is_refused {
            for warning in checks::everything(trainer, steps)? {
                log.warning(("[pipeline] %s", warning))?;
            }
        }
        run.convert_natively(self.native_convert || self.warm_start);
        let _warm = if self.warm_start {
            warm_up(trainer, run, self.use_pre_cache)?
        } else {
            None
        };

        let caches = steps.contains(&Step::PreCache);
        let ahead = if caches {
            read_ahead(trainer, &[], &FOR_CACHING)
        } else if steps.contains(&Step::LaunchTraining) {
            read_ahead(trainer, &[], for_training(trainer)?)
        } else {
            None
        };
        let around = Around::begin(run, py, DATASET, &[])?;
        let dataset_toml = trainer.call_method1(
            "_prepare_dataset",
            (
                self.dataset_toml_content,
                self.images_zip_url,
                self.trigger_word,
            ),
        )?;
        around.end_dataset(py)?;
        stop_reading_ahead(ahead, &log)?;
        run.check()?;
        if self.use_pre_cache {
            let ahead = if caches && steps.contains(&Step::LaunchTraining) {
                read_ahead(trainer, &FOR_CACHING, for_training(trainer)?)
            } else {
                None
            };
            call_step(
                trainer,
                run,
                Step::PreCache,
                &[("dataset_toml_path", &dataset_toml)],
            )?;
            stop_reading_ahead(ahead, &log)?;
            run.check()?;
        }
        let arguments = [
            ("dataset_toml_path", &dataset_toml),
            ("output_name", self.output_name),
            ("max_train_steps", self.max_train_steps),
            ("seed", self.seed),
        ];
        let mut model = call_step(trainer, run, Step::LaunchTraining, &arguments)?;
        outputs.extend(output("lora", &model));
        run.check()?;
        if self.convert_for_comfyui {
            model = call_step(
                trainer,
                run,
                Step::ConvertForComfyui,
                &[("model_path", &model)],
            )?;
            outputs.extend(output("comfyui", &model));
            run.check()?;
        }
        log.info(("[pipeline] done final_model=%s", &model))?;
        Ok(model)
    }
}

/// What a step has returned, where that is a path.
fn output(kind: &'static str, returned: &Bound<'_, PyAny>) -> Option<(&'static str, PathBuf)> {
    let path: PathBuf = returned.extract().ok()?;
    Some((kind, absolute(&path).ok()?))
}

/// Calls the method of a step, which somebody may have replaced.
fn call_step<'py>(
    slf: &Bound<'py, PyAny>,
    run: &Run,
    step: Step,
    arguments: &[(&str, &Bound<'py, PyAny>)],
) -> PyResult<Bound<'py, PyAny>> {
    let py = slf.py();
    let name = match step {
        Step::PrepareDataset => DATASET,
        Step::PreCache => CACHING,
        Step::LaunchTraining => TRAINING,
        Step::ConvertForComfyui => CONVERSION,
    };
    let keywords = arguments.into_py_dict(py)?;
    let call = || slf.call_method(step.method(), (), Some(&keywords));
    // Ours tell of their steps themselves.
    if !is_replaced(slf, step.method())? {
        return call();
    }
    let around = Around::begin(run, py, name, &[])?;
    let returned = call()?;
    around.end(py)?;
    Ok(returned)
}

/// Cancel what is under way on this trainer; may be called from any thread.
///
/// The call that is under way (`train`, or a step alone) ends its process tree and raises `Cancelled` in its own thread.
/// The training folder is left as after any other end: the next run can use it.
///
/// Returns:
///     bool: whether anything was under way.
#[pyfunction]
fn cancel(slf: &Bound<'_, PyAny>) -> bool {
    Run::cancel_on(slf)
}

/// Say where the run that is under way on this trainer is; may be called from any thread.
///
/// Returns:
///     RunStatus: its step, how far that is, the loss, the time left; the end of the last run where none is under way.
#[pyfunction]
fn status<'py>(slf: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    record::status(slf)
}

/// Train as `train` does, in a thread of its own.
///
/// Args:
///     *args (Any): as for `train`.
///     **kwargs (Any): as for `train`; `on_event` is called in that thread.
///
/// Returns:
///     Coroutine[Any, Any, str]: of what `train` returns. Cancelling it cancels the run, and waits until nothing of it is
///         left running.
///
/// Raises:
///     What `train` raises.
#[pyfunction]
#[pyo3(signature = (slf, *args, **kwargs))]
fn train_async<'py>(
    slf: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    slf.py()
        .import("musubitraining.train_async")?
        .call_method1("train_async", (slf, args, kwargs))
}

/// Made once: a class outlives its module, which is imported anew when it has been taken out of `sys.modules`.
static CLASS: PyOnceLock<PlainClass> = PyOnceLock::new();

fn plain_class(py: Python<'_>) -> PyResult<&PlainClass> {
    CLASS.get_or_try_init(py, || {
        let methods = [
            wrap_pyfunction!(initialise, py)?,
            wrap_pyfunction!(_run_cmd, py)?,
            wrap_pyfunction!(_validate_toml_str, py)?,
            wrap_pyfunction!(_prepare_dataset, py)?,
            wrap_pyfunction!(_pre_cache, py)?,
            wrap_pyfunction!(_launch_training, py)?,
            wrap_pyfunction!(_convert_for_comfyui, py)?,
            wrap_pyfunction!(train, py)?,
            wrap_pyfunction!(plan::make, py)?,
            wrap_pyfunction!(train_async, py)?,
            wrap_pyfunction!(cancel, py)?,
            wrap_pyfunction!(status, py)?,
        ];
        let class = PlainClass::new(py, "MusubiTraining", DOC, &methods)?;
        // Of each instance, once it has trained.
        class.class(py).setattr("last_run", py.None())?;
        Ok(class)
    })
}

/// The class.
///
/// # Errors
/// What Python raises.
pub fn class(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    Ok(plain_class(py)?.class(py))
}

/// Whether a subclass or a test has put something else in the place of the method `name`.
fn is_replaced(slf: &Bound<'_, PyAny>, name: &str) -> PyResult<bool> {
    plain_class(slf.py())?.is_replaced(slf, name)
}

fn path_of(slf: &Bound<'_, PyAny>, attribute: &str) -> PyResult<PathBuf> {
    slf.getattr(attribute)?.extract()
}

/// With its parents, unless something is there already.
fn make_folder(path: &Path) -> Result<(), Error> {
    if path.exists() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(Error::io("create", path))
}

fn clone_of(slf: &Bound<'_, PyAny>) -> PyResult<MusubiTuner> {
    Ok(MusubiTuner::new(absolute(&path_of(
        slf,
        "absolute_path_musubi_tuner",
    )?)?))
}

/// The path of the weight file that `Models` has under `field`.
fn weights_of(slf: &Bound<'_, PyAny>, field: &str) -> PyResult<PathBuf> {
    let name: PathBuf = slf
        .getattr("models_for_training")?
        .getattr(field)?
        .extract()?;
    Ok(path_of(slf, "absolute_path_models")?.join(name))
}

/// Counted from the caller's folder, as a step runs in another; an absolute path stays as it was written.
fn absolute(path: &Path) -> PyResult<PathBuf> {
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    let folder = std::env::current_dir().map_err(Error::io("find the folder of", path))?;
    Ok(folder.join(path))
}

/// The run that a step belongs to, which has the training folder. An object that is no trainer may borrow a step, and
/// have none.
fn run_of_step(slf: &Bound<'_, PyAny>, access: Access) -> PyResult<Run> {
    let run = Run::of(slf)?;
    if let Ok(folder) = path_of(slf, "absolute_path_training_folder") {
        run.claim_for_step(slf.py(), &folder, access)?;
    }
    Ok(run)
}

/// The steps that are ours, up to one that is replaced.
fn steps_to_check(
    slf: &Bound<'_, PyAny>,
    use_pre_cache: bool,
    convert_for_comfyui: bool,
) -> PyResult<Vec<Step>> {
    let wanted = [
        (Step::PrepareDataset, true),
        (Step::PreCache, use_pre_cache),
        (Step::LaunchTraining, true),
        (Step::ConvertForComfyui, convert_for_comfyui),
    ];
    let mut steps = Vec::new();
    for (step, _) in wanted.into_iter().filter(|(_, is_wanted)| *is_wanted) {
        // Whoever replaces a step may provide in it what the later ones need.
        if is_replaced(slf, step.method())? {
            break;
        }
        steps.push(step);
    }
    Ok(steps)
}

/// Reads weights that the coming step needs into memory, while something else is the bottleneck: the step under way, once
/// it has read its own, which are those in `after`.
fn read_ahead(slf: &Bound<'_, PyAny>, after: &[&str], fields: &[&str]) -> Option<ReadAhead> {
    let paths = |fields: &[&str]| -> PyResult<Vec<PathBuf>> {
        let path = |field: &&str| absolute(&weights_of(slf, field)?);
        fields.iter().map(path).collect()
    };
    Some(ReadAhead::start(paths(after).ok()?, paths(fields).ok()?))
}

fn stop_reading_ahead(ahead: Option<ReadAhead>, log: &Log<'_>) -> PyResult<()> {
    let outcome = ahead.map(ReadAhead::stop);
    match outcome.filter(|outcome| outcome.read_bytes > 0) {
        Some(outcome) => log.info(("[pipeline] weights read ahead: %s", outcome.to_string())),
        None => Ok(()),
    }
}

/// Starts the interpreter that the scripts of these steps are to be forked from, if they are run here.
fn warm_up(slf: &Bound<'_, PyAny>, run: &Run, use_pre_cache: bool) -> PyResult<Option<Warm>> {
    let py = slf.py();
    let clone = clone_of(slf)?;
    let mut scripts = Vec::new();
    if use_pre_cache && !is_replaced(slf, Step::PreCache.method())? {
        scripts.extend([clone.latents_script(), clone.text_encoder_script()]);
    }
    let trains = !is_replaced(slf, Step::LaunchTraining.method())?;
    if trains {
        scripts.push(clone.training_script());
    }
    if scripts.is_empty() || is_replaced(slf, "_run_cmd")? {
        return Ok(None);
    }
    let command = Command {
        argv: interpreter::warm(py, scripts)?,
        cwd: absolute(&path_of(slf, "absolute_path_musubi_tuner")?)?,
        environment: interpreter::environment(py, Some(clone.source_folder()))?,
        locks: run.locks(),
    };
    let log = Log::of(slf)?;
    let started =
        interrupt::run_quietly(py, run.cancel(), |_| Ok(WarmInterpreter::start(command)))?;
    match started {
        Ok(interpreter) => {
            log.info(("[pipeline] warm start: one interpreter imports for all steps",))?;
            if trains && !interpreter::launcher_is_known(py)? {
                log.info((
                    "[pipeline] no warm start for the training: this accelerate's launcher is not one that is known",
                ))?;
            } else if trains && !interpreter::is_for_one_process(&options::launch_words(slf)?) {
                log.info((
                    "[pipeline] no warm start for the training: its launcher is told of GPUs, processes or machines",
                ))?;
            }
            Ok(Some(run.warm_up(interpreter)))
        }
        Err(error) => {
            log.warning((
                "[pipeline] no warm start, the steps run in processes of their own: %s",
                error.to_string(),
            ))?;
            Ok(None)
        }
    }
}

/// Runs a step of Musubi Tuner through `self._run_cmd`; tells what its command has said, or `None` when none was started,
/// as that may be replaced.
fn run_step(slf: &Bound<'_, PyAny>, step: &str, argv: &[OsString]) -> PyResult<Option<Heard>> {
    let py = slf.py();
    let run = Run::of(slf)?;
    // Of an earlier call.
    drop(run.heard(step));
    let cwd = absolute(&path_of(slf, "absolute_path_musubi_tuner")?)?;
    let keywords = [("cwd", cwd.into_os_string())].into_py_dict(py)?;
    let call = || slf.call_method("_run_cmd", (step, PyList::new(py, argv)?), Some(&keywords));
    // Ours tells of the step itself.
    if is_replaced(slf, "_run_cmd")? {
        let around = Around::begin(&run, py, step, argv)?;
        call()?;
        around.end(py)?;
    } else {
        call()?;
    }
    run.check()?;
    Ok(run.heard(step))
}

/// The exit code, if the error says that a command has failed.
fn failed_command(py: Python<'_>, error: &PyErr) -> Option<i32> {
    let kind = py
        .import("subprocess")
        .ok()?
        .getattr("CalledProcessError")
        .ok()?;
    if !error.is_instance(py, &kind) {
        return None;
    }
    error.value(py).getattr("returncode").ok()?.extract().ok()
}

/// The adapter as this clone merges it: the caller's file, or one in Musubi Tuner's naming in the training folder. `None`
/// where the options want none.
fn mergeable_adapter(
    slf: &Bound<'_, PyAny>,
    clone: &MusubiTuner,
    run: &Run,
) -> PyResult<Option<PathBuf>> {
    let py = slf.py();
    if !options::merge_base_weights(slf)? {
        return Ok(None);
    }
    let given = absolute(&weights_of(slf, "base_weights")?)?;
    let folder = absolute(&path_of(slf, "absolute_path_training_folder")?)?;
    let renamed = folder.join(RENAMED_ADAPTER);
    let left_out = interrupt::run_quietly(py, run.cancel(), |_| {
        if !checks::is_merged_in_vain(&given, clone)? {
            return Ok(None);
        }
        make_folder(&folder)?;
        adapter::rename(&given, &renamed).map(Some)
    })?;
    let Some(left_out) = left_out else {
        return Ok(Some(given));
    };
    Log::new(py)?.info((
        "[train] base weights %s are in diffusers naming, of which this Musubi Tuner merges nothing: \
         renamed into %s (%s tensors left out that have neither naming)",
        given.as_os_str(),
        renamed.as_os_str(),
        left_out,
    ))?;
    Ok(Some(renamed))
}

fn converted_path(model: &Path) -> PathBuf {
    let mut path = model
        .as_os_str()
        .to_owned()
        .into_string()
        .unwrap_or_else(|path| path.to_string_lossy().into_owned());
    if path.ends_with(".safetensors") {
        path.truncate(path.len() - ".safetensors".len());
    }
    PathBuf::from(path + "_comfyui.safetensors")
}
