# The steps of `make run`, in an image: docker build -t iterit . && docker run --rm -it -v iterit:/iterit iterit
FROM python:3.11-slim-bookworm

# git: DVC needs the repository; make: the commands; g++: DeepSpeed compiles a small extension for several processes
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /iterit

# the environment changes seldom: its layer is kept when only the code changes
COPY Makefile pyproject.toml requirements.lock prefect.toml README.md LICENSE ./
COPY components components
COPY flows flows
RUN make setup

COPY . .

# Prefect's and MLflow's pages, where a command of this image serves them
EXPOSE 4200 5000

CMD ["make", "run"]
