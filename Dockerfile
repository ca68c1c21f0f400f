# sparsight on CPUs:  docker build -t sparsight . ; docker run -p 8000:8000 -v sparsight:/data sparsight
# A key has to be made first, since others can reach what listens in a container: see docs/http.md.
FROM python:3.12-slim

COPY constraints.txt /src/
RUN pip install --no-cache-dir -c /src/constraints.txt torch \
    --index-url https://download.pytorch.org/whl/cpu --extra-index-url https://pypi.org/simple
COPY pyproject.toml README.md LICENSE CHANGELOG.md /src/
COPY src /src/src
RUN pip install --no-cache-dir -c /src/constraints.txt "/src[serve]"

RUN useradd --create-home sparsight && mkdir /data && chown sparsight /data
USER sparsight
ENV XDG_DATA_HOME=/data HF_HOME=/data/huggingface
VOLUME /data
EXPOSE 8000
HEALTHCHECK --start-period=10m CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz')"]
ENTRYPOINT ["sparsight"]
CMD ["serve", "demo", "--host", "0.0.0.0", "--keys", "/data/serve.db"]
