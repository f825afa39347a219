"""MLflow records of a pipeline run and the model registry. MLflow is imported in this room and nowhere else.

Stages write files and do not use MLflow. Their files are logged afterwards by one process: the flow after each stage,
or the stage `register` for all stages under a bare `dvc repro`. Both call the same functions, so the records are the
same. An unreachable tracking server costs no training: `dvc repro register` records everything later.

    parent run      one per pipeline run. All parameters; per iteration `evaluate/perplexity`, `score/mean_complexity`,
                    ... (step = iteration, 0 is the base model); per optimizer step `step/loss`, `step/learning_rate`,
                    `step/gradient_norm`
    child `score@2` one per stage. Its parameters, its metrics, its tables as artifacts, the records it read as dataset
                    inputs; parameters, dependencies and outputs are those of dvc.lock, with DVC's hashes

Every function that talks to MLflow raises Unreachable when the tracking server does not answer.
"""
